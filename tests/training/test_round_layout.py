"""What a round says about its layout, and what it scores again when it comes back to the same pairs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dpo_studio.domain.round import RoundReport, TrainSettings
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.dpo.evaluate import score_pairs
from dpo_studio.dpo.layouts import PADDED
from dpo_studio.dpo.self_check import LayoutChoice
from dpo_studio.training import round_training, scoring
from dpo_studio.training.attempt import EXIT_OK
from dpo_studio.training.worker import main
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
    monkeypatch.setattr(round_training, "choose_layout", lambda *_, **__: choice)
    padded = train(tmp_path / "padded", model, heldout=rows(2, 50))
    assert padded.layout == ("Trained in the padded layout. The packed layout was not used: a test says so.")
    assert padded.heldout_margins == pytest.approx(cheap.heldout_margins, abs=1e-3)
    assert padded.metrics["loss"] == pytest.approx(cheap.metrics["loss"], rel=1e-3)


def test_a_second_round_scores_only_the_new_pairs(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth more pairs: a tenth of the reference pass, as the report says and as the model is asked."""
    scored: list[int] = []

    def count(scorer: Any, pairs: list[TokenPair], *arguments: Any, **options: Any) -> Any:
        scored.append(len(pairs))
        return score_pairs(scorer, pairs, *arguments, **options)

    monkeypatch.setattr(scoring, "score_pairs", count)
    cache = str(tmp_path / "cache")
    heldout = rows(10, 100)

    def run(name: str, num_train: int, num_heldout: int) -> tuple[RoundReport, list[int]]:
        scored.clear()
        data = {"train": rows(num_train), "heldout": heldout[:num_heldout]}
        report = train(tmp_path / name, model, reference_cache=cache, **data)
        # The reference of the training pairs, of the held-out ones, and the policy at the end of its epoch.
        return report, scored[:2]

    first, asked = run("first", 20, 9)
    assert (first.num_reference_computed, first.num_reference_known) == (29, 0)
    assert asked == [20, 9]
    second, asked = run("second", 22, 10)
    assert (second.num_reference_computed, second.num_reference_known) == (3, 29)
    assert asked == [2, 1]
    again, asked = run("again", 20, 9)
    assert (again.num_reference_computed, again.num_reference_known) == (0, 29)
    assert asked == [0, 0]
    assert again.adapter_sha256 == first.adapter_sha256


def test_a_round_under_another_objective_finds_nothing(tmp_path: Path, model: Path) -> None:
    """The negative control: what a tail weight changes must be computed again."""
    cache = str(tmp_path / "cache")
    train(tmp_path / "plain", model, reference_cache=cache)
    settings = dataclasses.replace(QUICK, ld_alpha=0.5)
    report = train(tmp_path / "other", model, reference_cache=cache, settings=settings)
    assert (report.num_reference_computed, report.num_reference_known) == (8, 0)


def test_a_round_with_soft_labels_wants_a_smaller_margin(tmp_path: Path, model: Path) -> None:
    """Votes 3:2 on every pair; without the setting they count as certain."""
    doubted = [{**row, "chosen_probability": 0.6} for row in rows(8)]
    settings = TrainSettings(epochs=12, batch_size=4, learning_rate=2e-3, lora_rank=4, loss="ipo")
    hard = train(tmp_path / "hard", model, train=doubted, settings=settings)
    plain = train(tmp_path / "plain", model, train=rows(8), settings=settings)
    settings = dataclasses.replace(settings, soft_labels=True)
    soft = train(tmp_path / "soft", model, train=doubted, settings=settings)
    assert hard.metrics == plain.metrics
    assert 0 < soft.metrics["rewards/margins"] < 0.6 * hard.metrics["rewards/margins"]


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
