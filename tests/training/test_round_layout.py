"""What a round says about its layout, and what it scores again when it comes back to the same pairs."""

from pathlib import Path
from typing import Any

import pytest

from dpo_studio.domain.round import RoundReport, TrainSettings
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.dpo.evaluate import score_pairs
from dpo_studio.dpo.layouts import PADDED
from dpo_studio.dpo.self_check import LayoutChoice
from dpo_studio.training import round_training
from dpo_studio.training.worker import EXIT_OK, main
from tests.training.rounds import make_round, read_report, rows

pytestmark = pytest.mark.usefixtures("signals")
QUICK = TrainSettings(epochs=1, batch_size=4, learning_rate=1e-2, lora_rank=4)


def train(folder: Path, model: Path, **options: Any) -> RoundReport:
    paths = make_round(folder, model, **{"settings": QUICK, **options})
    assert main([str(paths.root)]) == EXIT_OK
    return read_report(paths)


def test_the_report_names_the_layout(tmp_path: Path, model: Path) -> None:
    assert train(tmp_path, model).layout == "Trained in the prefix-shared layout."


def test_a_fallback_trains_the_same_and_says_why(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cheap = train(tmp_path / "cheap", model, heldout=rows(2, 50))
    choice = LayoutChoice(PADDED, ("The packed layout was not used: a test says so",))
    monkeypatch.setattr(round_training, "choose_layout", lambda *_: choice)
    padded = train(tmp_path / "padded", model, heldout=rows(2, 50))
    assert padded.layout == ("Trained in the padded layout. The packed layout was not used: a test says so.")
    assert padded.heldout_margins == pytest.approx(cheap.heldout_margins, abs=1e-3)
    assert padded.metrics["loss"] == pytest.approx(cheap.metrics["loss"], rel=1e-3)


def test_a_second_round_scores_only_the_new_pairs(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []

    def count(scorer: Any, pairs: list[TokenPair], *arguments: Any, **options: Any) -> Any:
        scored.append(len(pairs))
        return score_pairs(scorer, pairs, *arguments, **options)

    monkeypatch.setattr(round_training, "score_pairs", count)
    cache = str(tmp_path / "cache")
    first = train(tmp_path / "1", model, train=rows(10), reference_cache=cache)
    assert scored[0] == 10
    scored.clear()
    train(tmp_path / "2", model, train=rows(11), reference_cache=cache)
    assert scored[0] == 1
    scored.clear()
    again = train(tmp_path / "3", model, train=rows(10), reference_cache=cache)
    assert scored[0] == 0
    assert again.adapter_sha256 == first.adapter_sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "hinge"},
        {"loss": "robust", "label_smoothing": 0.1},
        {"loss": "ipo", "length_normalised": True},
        {"ld_alpha": 0.5},
    ],
)
def test_every_objective_trains(tmp_path: Path, model: Path, changes: dict[str, Any]) -> None:
    settings = TrainSettings(epochs=3, batch_size=4, learning_rate=1e-2, lora_rank=4, **changes)
    report = train(tmp_path, model, settings=settings)
    assert report.metrics["rewards/margins"] > 0
