"""Bad data and bad adapters: a round that trains anyway, or one sentence, and always a report."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from dpo_studio.domain.round import RoundReport, TrainSettings
from dpo_studio.training.attempt import EXIT_FAILED, EXIT_OK
from dpo_studio.training.worker import main
from tests.models import make_tiny_adapter, make_tiny_model
from tests.training.rounds import make_round, read_report, row, rows

pytestmark = pytest.mark.usefixtures("signals")
QUICK = TrainSettings(epochs=1, batch_size=4, learning_rate=1e-3, lora_rank=4)
# Of the tiny model, in tokens.
CONTEXT = 256


def run(folder: Path, model: Path, **options: Any) -> RoundReport:
    paths = make_round(folder, model, **{"settings": QUICK, **options})
    code = main([str(paths.root)])
    report = read_report(paths)
    assert code == (EXIT_OK if report.ok else EXIT_FAILED)
    assert paths.adapter.exists() == report.ok
    return report


def refusal(folder: Path, model: Path, **options: Any) -> str:
    """One sentence without a full stop or a line break in it."""
    report = run(folder, model, **options)
    assert not report.ok
    assert "\n" not in report.reason and "Traceback" not in report.reason
    return report.reason


def test_one_pair_alone_is_trained_on(tmp_path: Path, model: Path) -> None:
    report = run(tmp_path, model, train=rows(1))
    assert (report.ok, report.num_train, report.num_steps) == (True, 1, 1)


def test_all_pairs_in_training_leave_nothing_to_measure_by(tmp_path: Path, model: Path) -> None:
    report = run(tmp_path, model, train=rows(6), heldout=[])
    assert (report.ok, report.num_heldout, report.heldout_margins) == (True, 0, ())
    assert not any(name.startswith("heldout/") for name in report.metrics)


def test_no_pairs_are_a_sentence(tmp_path: Path, model: Path) -> None:
    reason = refusal(tmp_path, model, train=[])
    assert reason == "Training needs at least one pair, and the round has none; label some more"


def test_all_pairs_held_out_are_a_sentence(tmp_path: Path, model: Path) -> None:
    """It said that the round had no pairs at all, and to label more, which need not help."""
    reason = refusal(tmp_path, model, train=[], heldout=rows(3))
    assert "all 3 of the round are held out; label answers to other prompts" in reason


def test_every_reason_is_counted(tmp_path: Path, model: Path) -> None:
    reason = refusal(tmp_path, model, train=[row(1, "same", "same"), row(2, "", "no"), row(3, "", "so")])
    assert "None of the 3 training pairs can be used" in reason
    assert "2 with an empty response" in reason and "1 with two equal responses" in reason


def test_held_out_pairs_that_cannot_be_used_are_as_none(tmp_path: Path, model: Path) -> None:
    report = run(tmp_path, model, heldout=[row(1, "same", "same"), row(2, "", "no")])
    assert (report.ok, report.num_heldout, report.num_dropped) == (True, 0, 2)


def test_a_pair_longer_than_the_context_is_cut_and_counted(tmp_path: Path, model: Path) -> None:
    long = row(9, "word " * CONTEXT, "other " * CONTEXT)
    long["prompt"][0]["content"] = "please " * CONTEXT
    settings = dataclasses.replace(QUICK, max_length=100_000)
    report = run(tmp_path, model, train=[*rows(3), long], settings=settings)
    assert (report.ok, report.num_train, report.num_truncated) == (True, 4, 1)


def test_only_pairs_longer_than_the_context_are_trained_on_too(tmp_path: Path, model: Path) -> None:
    report = run(tmp_path, model, train=[row(9, "word " * CONTEXT, "other " * CONTEXT)])
    assert (report.ok, report.num_train, report.num_truncated) == (True, 1, 1)


def test_responses_that_differ_only_beyond_the_cut_teach_nothing(tmp_path: Path, model: Path) -> None:
    """Trained on, they would be two equal responses, one of them called worse."""
    same = "word " * CONTEXT
    reason = refusal(tmp_path, model, train=[row(9, same + "yes", same + "no")])
    assert "None of the 1 training pairs can be used: 1 with two equal responses" in reason


@pytest.mark.parametrize(
    ("chosen", "rejected", "why"),
    [
        ("same", "same", "with two equal responses"),
        ("", "no", "with an empty response"),
        ("yes", "", "with an empty response"),
        (" \n", "no", "with an empty response"),
    ],
)
def test_pairs_without_content_are_named(
    tmp_path: Path, model: Path, chosen: str, rejected: str, why: str
) -> None:
    assert why in refusal(tmp_path, model, train=[row(1, chosen, rejected)])


@pytest.mark.parametrize("role", ["live_adapter", "start_adapter"])
@pytest.mark.parametrize("damage", ["weights", "config", "no weights", "gone", "another base"])
def test_an_adapter_that_cannot_be_used_is_a_sentence(
    tmp_path: Path, model: Path, role: str, damage: str
) -> None:
    base = (
        make_tiny_model(tmp_path / "wider", "starter", hidden_size=64) if damage == "another base" else model
    )
    adapter = make_tiny_adapter(tmp_path / "adapter", base)
    if damage == "weights":
        (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 100)
    elif damage == "config":
        (adapter / "adapter_config.json").write_text("{")
    elif damage == "no weights":
        (adapter / "adapter_model.safetensors").unlink()
    elif damage == "gone":
        shutil.rmtree(adapter)
    settings = dataclasses.replace(QUICK, start_from="live")
    reason = refusal(tmp_path / "round", model, settings=settings, **{role: str(adapter)})
    assert ("expected to fit" if damage == "another base" else "adapter") in reason


@pytest.mark.parametrize("name", ["train", "heldout", "job"])
def test_a_file_that_is_gone_is_named(tmp_path: Path, model: Path, name: str) -> None:
    paths = make_round(tmp_path, model, settings=QUICK, heldout=rows(2, 50))
    getattr(paths, name).unlink()
    assert main([str(paths.root)]) == EXIT_FAILED
    assert getattr(paths, name).name in read_report(paths).reason
