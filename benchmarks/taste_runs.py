"""Chains of rounds with simulated voters: vote on the live version's answers, train on all votes, measure.

As in the studio: a round trains on every pair there is, from the start that the settings name; its candidate
becomes live when the gate lets it pass; the next votes are on samples of what is live. A round's row measures
its candidate in any case.
"""

import random
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.answer_pool import AnswerPool, Comparison
from benchmarks.evaluation import Evaluation, Figures
from benchmarks.labeling import Voter, vote
from benchmarks.sampler import Conversation, Sampler
from benchmarks.taste_round import Outcome, Training, run_round
from benchmarks.taste_rows import Key, Row, settings_text
from dpo_studio import starter
from dpo_studio.domain.chat import BASE, Completion, Message
from dpo_studio.domain.codec import to_json
from dpo_studio.domain.preference import PreferencePair
from dpo_studio.tastes import get_taste


@dataclass(frozen=True, slots=True)
class Plan:
    """Rounds in a row."""

    kind: str
    taste: str
    """Name for the row: `a`, `a+b`, or `a>b`."""
    rounds: tuple[str, ...]
    """The taste of each round's votes."""
    votes: int
    flips: float = 0.0
    is_divided: bool = False
    """Half of the voters want the opposite."""


class Bench:
    """What all runs of one process share."""

    def __init__(
        self, sampler: Sampler, evaluation: Evaluation, training: Training, pools: Path, *, seed: int = 0
    ) -> None:
        """Raises BadInput when an evaluation prompt is among the labeling prompts."""
        self.sampler = sampler
        self.evaluation = evaluation
        self.training = training
        self.seed = seed
        self._pools = pools
        self._labeling: list[Conversation] = [(Message("user", text),) for text in starter.seed_prompts()]
        evaluation.refuse_overlap(self._labeling)

    @cached_property
    def base_answers(self) -> list[list[Completion]]:
        """To the evaluation prompts, sampled once."""
        return self.evaluation.ask(self.sampler, BASE)

    def with_training(self, training: Training) -> "Bench":
        """The same bench with other settings."""
        other = Bench(self.sampler, self.evaluation, training, self._pools, seed=self.seed)
        other.__dict__["base_answers"] = self.base_answers
        return other

    def pool(self, version: str) -> AnswerPool:
        """Comparisons of a loaded version."""
        return AnswerPool(self.sampler, version, self._labeling, folder=self._pools, seed=self.seed)

    def keys(self, plan: Plan) -> list[Key]:
        """The rows that a plan gives."""
        settings = to_json(self.training.settings)
        if self.training.drift_budget is not None:
            settings["drift_budget"] = self.training.drift_budget
        return [
            Key(
                kind=plan.kind,
                taste=plan.taste,
                votes=plan.votes,
                flips=plan.flips,
                round=number,
                settings=settings_text(settings),
                model_sha256=self.sampler.base.model_sha256,
                prompts=self.evaluation.name,
                seed=self.seed,
            )
            for number in range(1, len(plan.rounds) + 1)
        ]

    def run(self, plan: Plan) -> Iterator[Row]:
        """One row a round, as soon as it is measured."""
        with tempfile.TemporaryDirectory() as folder:
            yield from _Studio(self, plan, Path(folder)).rounds()


class _Studio:
    """The state of one chain: the votes so far, and what is live."""

    def __init__(self, bench: Bench, plan: Plan, folder: Path) -> None:
        self._bench = bench
        self._plan = plan
        self._folder = folder
        self._rng = random.Random(f"{plan.kind}-{plan.taste}-{plan.flips}-{bench.seed}")
        self._pairs: list[PreferencePair] = []
        self._live = BASE
        self._live_adapter: Path | None = None
        self._queue = self._comparisons()

    def rounds(self) -> Iterator[Row]:
        """Vote, train, measure, deploy."""
        sampler = self._bench.sampler
        try:
            for key, name in zip(self._bench.keys(self._plan), self._plan.rounds, strict=True):
                fresh, shown = vote(
                    self._voters(name), self._queue, key.votes, self._rng, prefix=f"{key.round:03d}"
                )
                self._pairs += fresh
                outcome = run_round(
                    sampler.base,
                    self._pairs,
                    self._bench.training,
                    self._folder,
                    number=key.round,
                    live_adapter=self._live_adapter,
                )
                version = f"v{key.round}"
                sampler.load(version, outcome.adapter)
                yield self._row(key, version, outcome, shown)
                self._deploy(version, outcome)
        finally:
            sampler.unload(self._live)

    def _voters(self, name: str) -> list[Voter]:
        sides = (False, True) if self._plan.is_divided else (False,)
        return [Voter(get_taste(name), self._plan.flips, is_opposed) for is_opposed in sides]

    def _comparisons(self) -> Iterator[Comparison]:
        return self._bench.pool(self._live).comparisons(self._rng)

    def _deploy(self, version: str, outcome: Outcome) -> None:
        if not outcome.verdict.passed:
            self._bench.sampler.unload(version)
            return
        self._bench.sampler.unload(self._live)
        self._live, self._live_adapter = version, outcome.adapter
        self._queue = self._comparisons()

    def _row(self, key: Key, version: str, outcome: Outcome, shown: int) -> Row:
        bench, report = self._bench, outcome.report
        answers = bench.evaluation.ask(bench.sampler, version)
        measured = get_taste(self._plan.rounds[key.round - 1])
        every = list(dict.fromkeys(part for name in self._plan.rounds for part in name.split("+")))
        assert report.candidate_probe is not None
        return Row(
            key=key,
            base=bench.evaluation.judge(bench.base_answers, measured),
            live=bench.evaluation.judge(answers, measured),
            parts={} if len(every) == 1 else {name: self._rates(name, answers) for name in every},
            shown=shown,
            num_pairs=len(self._pairs),
            num_steps=report.num_steps,
            planned_steps=int(report.metrics.get("planned_steps", report.num_steps)),
            kl_per_token=report.candidate_probe.kl_per_token,
            heldout_accuracy=report.metrics.get("heldout/rewards/accuracies"),
            passed=outcome.verdict.passed,
            reason="" if outcome.verdict.passed else outcome.verdict.reasons[0],
            seconds=outcome.seconds,
            cpu_seconds=outcome.cpu_seconds,
        )

    def _rates(self, name: str, answers: Sequence[Sequence[Completion]]) -> tuple[float, float]:
        found: list[Figures] = [
            self._bench.evaluation.judge(group, get_taste(name))
            for group in (self._bench.base_answers, answers)
        ]
        return found[0].rate, found[1].rate
