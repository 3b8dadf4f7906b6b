"""Imported rankings from the database to the report: whole under Plackett–Luce, as pairs under the others."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import RoundReport, TrainSettings
from dpo_studio.files import read_jsonl
from dpo_studio.modeling.weights import inspect_weights, weights_sha256
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.split import is_heldout
from dpo_studio.services.data import DataService
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.round_preparation import RoundPreparation
from dpo_studio.settings import Settings
from dpo_studio.store.database import Database
from dpo_studio.training.attempt import EXIT_OK
from dpo_studio.training.job import read_assignment
from dpo_studio.training.lifeline import Cancellation
from dpo_studio.training.worker import main
from tests.fakes import FakeEngine
from tests.store.makers import START, add_comparison, cast
from tests.training.rounds import make_round, read_progress, read_report, row, rows

pytestmark = pytest.mark.usefixtures("signals")
RANKED = TrainSettings(
    loss="plackett_luce", beta=1.0, epochs=6, batch_size=4, learning_rate=3e-3, lora_rank=4
)


@dataclasses.dataclass
class Bench:
    database: Database
    preparation: RoundPreparation
    settings: Settings

    def imports(self, lists: Sequence[dict[str, Any]]) -> None:
        DataService(self.database, now=lambda: START).import_pairs([json.dumps(item) for item in lists])

    def vote(self) -> None:
        """One vote that gives two pairs."""
        with self.database.write() as session:
            cast(session, add_comparison(session), Choice.BOTH_BAD, edited="Yes, and gladly.")

    def prepare(self, settings: TrainSettings) -> RoundPaths:
        number = self.preparation.prepare(trigger="ann", until=START, settings=settings)
        return self.settings.paths.round(number)


@pytest.fixture
def bench(tmp_path: Path, model: Path) -> Iterator[Bench]:
    settings = Settings(storage=tmp_path / "storage", model=str(model), device="cpu", _env_file=None)  # type: ignore[call-arg]
    settings.paths.root.mkdir()
    database = Database(settings.paths.database)
    database.open()
    engine = FakeEngine()
    engine.model_sha256 = weights_sha256(model, inspect_weights(model))
    deployment = DeploymentService(database, engine, settings.paths, smoke_prompts=("hi",), now=lambda: START)
    preparation = RoundPreparation(
        database, engine, deployment, settings, probe_prompts=("hi",), now=lambda: START
    )
    yield Bench(database, preparation, settings)
    database.close()


def ranked_lists(count: int) -> list[dict[str, Any]]:
    """The shorter the answer, the better."""
    ends = (
        "",
        " indeed, thank you",
        " indeed, thank you very much for asking",
        " and so on and on and on, as ever",
    )
    return [
        {"prompt": f"Question {number}, please?", "responses": [f"Yes {number}{end}." for end in ends]}
        for number in range(count)
    ]


def train(paths: RoundPaths) -> RoundReport:
    assert main([str(paths.root)]) == EXIT_OK
    return read_report(paths)


def test_imported_rankings_train_whole_beside_votes(bench: Bench) -> None:
    bench.imports(ranked_lists(12))
    bench.vote()
    paths = bench.prepare(RANKED)
    assignment = read_assignment(paths)
    pairs = [*assignment.train, *assignment.heldout]
    assert sorted(len(pair.responses) for pair in pairs) == [2, 2, *[4] * 12]
    share = bench.settings.heldout_share
    assert all(is_heldout(pair.messages, share) for pair in assignment.heldout) and assignment.heldout
    assert not any(is_heldout(pair.messages, share) for pair in assignment.train)
    report = train(paths)
    assert (report.num_train, report.num_heldout) == (len(assignment.train), len(assignment.heldout))
    assert report.layout == "Trained in the prefix-shared layout."
    assert "12 of 14 pairs are whole rankings, of up to 4 responses." in report.notes
    assert report.num_reference_computed == 14
    # The gate's margins are those of the metrics, best over worst.
    mean = sum(report.heldout_margins) / len(assignment.heldout)
    assert mean == pytest.approx(report.metrics["heldout/rewards/margins"])
    assert report.metrics["heldout/rewards/accuracies"] > 0.8
    assert report.metrics["rewards/margins"] > 0
    first = next(line.metrics for line in read_progress(paths) if line.metrics)
    assert first["rewards/accuracies"] == 0.5, "before the first step every order is a tie"


def test_with_another_loss_a_ranking_is_all_of_its_pairs(bench: Bench) -> None:
    bench.imports(ranked_lists(3))
    paths = bench.prepare(dataclasses.replace(RANKED, loss="sigmoid"))
    frozen = [*read_jsonl(paths.train), *read_jsonl(paths.heldout)]
    assert len(frozen) == 3 * 6
    assert not any("between" in line for line in frozen)
    assert not any("rankings" in note for note in train(paths).notes)


def frozen_lists(lists: Sequence[dict[str, Any]], *, is_turned: bool = False) -> list[dict[str, Any]]:
    """Lines of train.jsonl; turned, the worst comes first."""
    found = []
    for number, item in enumerate(lists):
        best, *between, worst = item["responses"][::-1] if is_turned else item["responses"]
        told = [{"role": "assistant", "content": text, "ids": None, "version": ""} for text in between]
        found.append(row(number, best, worst, between=told))
    return found


def test_lists_from_worst_to_best_teach_the_opposite(tmp_path: Path, model: Path) -> None:
    """The negative control: on held-out lists in their true order the loss rises instead of falling."""
    lists = ranked_lists(14)
    heldout = frozen_lists(lists)[8:]
    losses, accuracies = [], []
    for is_turned in (False, True):
        taught = frozen_lists(lists, is_turned=is_turned)[:8]
        folder = tmp_path / str(is_turned)
        report = train(make_round(folder, model, train=taught, heldout=heldout, settings=RANKED))
        losses.append(report.metrics["heldout/loss"])
        accuracies.append(report.metrics["heldout/rewards/accuracies"])
    # log 4!: what a model says that knows nothing of the order.
    assert losses[0] < 3.178 < losses[1]
    assert accuracies[0] > 0.8 and accuracies[1] < 0.2


def test_a_second_round_scores_only_the_new_rankings(tmp_path: Path, model: Path) -> None:
    frozen = [*frozen_lists(ranked_lists(5)), *rows(2, 50)]
    settings = dataclasses.replace(RANKED, epochs=1)
    cache = str(tmp_path / "cache")

    def run(name: str, train_rows: Sequence[Any]) -> RoundReport:
        folder = tmp_path / name
        return train(make_round(folder, model, train=train_rows, settings=settings, reference_cache=cache))

    # What is new in the second round are pairs: fewer columns than what is known.
    first, second = run("first", frozen[:5]), run("second", frozen)
    assert (first.num_reference_computed, first.num_reference_known) == (5, 0)
    assert (second.num_reference_computed, second.num_reference_known) == (2, 5)
    again = run("again", frozen)
    assert (again.num_reference_computed, again.num_reference_known) == (0, 7)
    # What was computed together and what was found are equal up to the rounding of another row.
    assert again.metrics == pytest.approx(second.metrics, rel=1e-3, abs=1e-3)


def test_a_stopped_training_of_rankings_goes_on_to_the_same_bits(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data: dict[str, Any] = {
        "train": [*frozen_lists(ranked_lists(4)), *rows(2, 50)],
        "heldout": [*frozen_lists(ranked_lists(8))[7:], *rows(1, 90)],
        "settings": dataclasses.replace(RANKED, batch_size=1),
        "checkpoint_every_s": 0.0,
    }
    expected = train(make_round(tmp_path / "whole", model, **data))
    # The pair's margin lies between its own two, although the ranking beside it has more responses.
    mean = sum(expected.heldout_margins) / 2
    assert mean == pytest.approx(expected.metrics["heldout/rewards/margins"])
    stopped = make_round(tmp_path / "stopped", model, **data)

    def num_steps() -> int:
        return max((line.step for line in read_progress(stopped) if line.metrics), default=0)

    with monkeypatch.context() as patch:
        patch.setattr(Cancellation, "requested", lambda _: num_steps() >= 9)
        assert main([str(stopped.root)]) != EXIT_OK
    assert stopped.checkpoint.is_file()
    report = train(stopped)
    assert "continued after step" in " ".join(report.notes)
    assert report.adapter_sha256 == expected.adapter_sha256
    assert (report.heldout_margins, report.metrics) == (expected.heldout_margins, expected.metrics)
