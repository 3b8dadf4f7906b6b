"""`export-model --merge`: full weights that answer as base and adapter do together."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import enable_progress_bar

from dpo_studio.domain.round import TrainSettings
from dpo_studio.modeling.adapters import new_lora, save_lora
from dpo_studio.modeling.base_model import load_base
from dpo_studio.paths import StoragePaths
from dpo_studio.rounds import registry
from dpo_studio.store import rounds, versions
from dpo_studio.store.database import Database
from tests.cli.conftest import CommandLine
from tests.models import make_tiny_model

pytestmark = pytest.mark.integration
NOW = datetime(2026, 1, 2, tzinfo=UTC)
IDS = torch.tensor([[5, 9, 40, 7]])


@pytest.fixture
def expected(command: CommandLine, tmp_path: Path) -> torch.Tensor:
    """Logits of base plus adapter v1, which the storage holds."""
    base = load_base(str(make_tiny_model(tmp_path / "model")), device="cpu")
    peft_model = new_lora(base.model, 4, 8, seed=1)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    save_lora(peft_model, tmp_path / "adapter")
    paths = StoragePaths(command.storage)
    paths.root.mkdir()
    registry.publish(
        tmp_path / "adapter",
        name="v1",
        round_number=1,
        model=base.source,
        model_sha256=base.model_sha256,
        tokenizer_sha256=base.tokenizer_sha256,
        dataset_sha256="sha256:data",
        code_version="0",
        now=NOW,
        paths=paths,
    )
    database = Database(paths.database)
    database.open()
    with database.write() as session:
        rounds.create_round("test", TrainSettings(), now=NOW, session=session)
        versions.add_version("v1", round_number=1, now=NOW, session=session)
    database.close()
    with torch.no_grad():
        logits: torch.Tensor = peft_model(IDS).logits
    return logits


def logits_of(folder: Path) -> torch.Tensor:
    """As any program would load the folder, without our code."""
    with torch.no_grad():
        logits: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(IDS).logits
    return logits


def test_merged_weights_answer_as_base_and_adapter(
    command: CommandLine, expected: torch.Tensor, tmp_path: Path
) -> None:
    flags = ("--merge", "--model", str(tmp_path / "model"), "--device", "cpu")
    outcome = command.run("export-model", "v1", str(tmp_path / "merged"), *flags)
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / 'merged'}: v1 merged into its base\n"), (
        outcome.err
    )
    torch.testing.assert_close(logits_of(tmp_path / "merged"), expected, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template
    assert not list((tmp_path / "merged").glob("*.bin"))
    # Negative control: base alone answers otherwise, so the merge did something.
    outcome = command.run("export-model", "base", str(tmp_path / "plain"), *flags)
    assert outcome.code == 0, outcome.err
    assert (logits_of(tmp_path / "plain") - expected).abs().max() > 0.01


def test_a_merge_says_its_one_line_and_nothing_else(
    command: CommandLine, expected: torch.Tensor, tmp_path: Path
) -> None:
    """Progress bars of transformers stood between the command and its answer."""
    del expected
    enable_progress_bar()
    command.capture.readouterr()
    flags = ("--merge", "--model", str(tmp_path / "model"), "--device", "cpu")
    outcome = command.run("export-model", "v1", str(tmp_path / "merged"), *flags)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("\n") == 1


def test_merging_into_another_model_is_refused(
    command: CommandLine, expected: torch.Tensor, tmp_path: Path
) -> None:
    del expected
    make_tiny_model(tmp_path / "other", seed=2)
    flags = ("--merge", "--model", str(tmp_path / "other"), "--device", "cpu")
    outcome = command.run("export-model", "v1", str(tmp_path / "merged"), *flags)
    assert outcome.code == 1
    assert "v1 was trained on" in outcome.err
    assert not (tmp_path / "merged").exists()


def test_four_bits_are_not_merged_into(command: CommandLine, tmp_path: Path) -> None:
    outcome = command.run("export-model", "base", str(tmp_path / "out"), "--merge", "--dtype", "nf4")
    assert (outcome.code, outcome.out) == (1, "")
    assert "dtype: expected full weights to merge into, found nf4; add --dtype auto" in outcome.err
    assert not (tmp_path / "out").exists()
