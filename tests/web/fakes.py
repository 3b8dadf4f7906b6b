"""In-memory services for the web tests: small, deterministic, with the real names and errors.

`FakeStudio.studio` is a `Studio` whose parts are these; a test reads what happened from the fakes.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpo_studio.domain.chat import BASE, EngineStatus, Message, SamplingParams, check_conversation
from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import RoundStatus, StepProgress, TrainingFacts, TrainSettings, Verdict
from dpo_studio.errors import BadInput, Conflict, EngineUnavailable, NotFound
from dpo_studio.services.data import ImportResult
from dpo_studio.services.studio import Studio
from dpo_studio.services.views import (
    ComparisonView,
    GenerationView,
    RoundView,
    ScheduleView,
    StudioStatus,
    VersionView,
    VoteView,
)
from dpo_studio.settings import load_settings
from tests.fakes import FakeTraining

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
TRAINED = TrainingFacts("Trained in the packed layout.", ("It ended early.",), 1, 2, 3, 4, 5.5)
QUEUE_PROMPT = Message("user", "What should I pack?")


class FakeLabeling:
    """Comparisons "c1", "c2", …: the longer text is A in odd ones and B in even ones."""

    def __init__(self) -> None:
        self.comparisons: dict[str, ComparisonView] = {}
        self.votes: dict[str, VoteView] = {}
        self.is_down = False

    async def next_ready(
        self, labeler: str, messages: tuple[Message, ...] | None = None, *, source: str = "api"
    ) -> ComparisonView:
        assert labeler == "local"
        if self.is_down:
            raise EngineUnavailable("The model is restarting; please ask again")
        conversation = check_conversation(messages) if messages is not None else (QUEUE_PROMPT,)
        number = len(self.comparisons) + 1
        short, long = f"Tea {number}.", f"Maybe bring some tea and a coat, number {number}?"
        a, b = (long, short) if number % 2 else (short, long)
        view = ComparisonView(f"c{number}", conversation, a, b, True, source)
        self.comparisons[view.id] = view
        return view

    def vote(
        self,
        labeler: str,
        comparison_id: str,
        choice: Choice,
        *,
        strength: int | None = None,
        reasons: tuple[str, ...] = (),
        note: str | None = None,
        edited: str | None = None,
    ) -> VoteView:
        del labeler, strength, reasons, note, edited
        if comparison_id not in self.comparisons:
            raise NotFound("comparison: expected one of yours, found another or none")
        vote_id = f"vote-{comparison_id}"
        before = self.votes.get(vote_id)
        is_new = before is None or before.choice != choice.value
        self.votes[vote_id] = VoteView(vote_id, comparison_id, choice.value, BASE, BASE, is_new)
        return self.votes[vote_id]

    def undo(self, labeler: str, vote_id: str | None = None) -> ComparisonView:
        del labeler
        vote = self.votes.pop(vote_id or "", None)
        if vote is None:
            raise NotFound("vote: expected one of yours, found another or none")
        return self.comparisons[vote.comparison_id]


class FakeDeployment:
    """base, v1 and v2."""

    def __init__(self) -> None:
        self.names = [BASE, "v1", "v2"]
        self.live_name = "v1"
        self.actors: list[str] = []

    def live(self) -> str:
        return self.live_name

    def resolve(self, name: str) -> str:
        if name == "live":
            return self.live_name
        if name not in self.names:
            raise NotFound(f"version: expected live, base or a published version, found {name[:40]!r}")
        return name

    def versions(self) -> list[VersionView]:
        return [
            VersionView(
                name=name,
                round=number or None,
                created_at=NOW if number else None,
                is_live=name == self.live_name,
                is_loaded=True,
                num_pairs=30 * number,
                heldout_accuracy=float("nan") if number == 2 else None,
            )
            for number, name in enumerate(self.names)
        ]

    async def promote(self, name: str, *, actor: str) -> str:
        self.live_name = self.resolve(name)
        self.actors.append(actor)
        return self.live_name

    async def rollback(self, *, actor: str) -> str:
        if self.live_name == BASE:
            raise Conflict("Nothing to roll back to: base is live already")
        return await self.promote(self.names[self.names.index(self.live_name) - 1], actor=actor)


class FakeGeneration:
    """Answers `<version> says: <last message>`, one word a view. Sample i > 0 begins with its number."""

    def __init__(self, deployment: FakeDeployment) -> None:
        self._deployment = deployment
        self.reset()

    def reset(self) -> None:
        """As new: nothing asked yet, quick and healthy."""
        self.requests: list[tuple[tuple[Message, ...], SamplingParams, int]] = []
        self.pause_s = 0.0
        self.fail_after_views: int | None = None
        self.num_open = 0
        self.num_ended = 0

    async def stream(
        self, messages: Sequence[Message], *, version: str, sampling: SamplingParams, n: int = 1
    ) -> AsyncGenerator[GenerationView, None]:
        conversation = check_conversation(messages)
        name = self._deployment.resolve(version)
        self.requests.append((conversation, sampling, n))
        words = f"{name} says: {conversation[-1].content}".split(" ")[: sampling.max_tokens]
        self.num_open += 1
        try:
            yield GenerationView(("",) * n, name, False)
            for count in range(1, len(words) + 1):
                if self.fail_after_views is not None and count > self.fail_after_views:
                    raise EngineUnavailable("The model stopped while it was answering")
                await asyncio.sleep(self.pause_s)
                texts = tuple(f"{index or ''}" + " ".join(words[:count]) for index in range(n))
                is_done = count == len(words)
                yield GenerationView(texts, name, is_done, (count,) * n, ("stop",) * n, 7, 11)
            self.num_ended += 1
        finally:
            self.num_open -= 1

    async def generate(
        self, messages: Sequence[Message], *, version: str, sampling: SamplingParams, n: int = 1
    ) -> GenerationView:
        views = [view async for view in self.stream(messages, version=version, sampling=sampling, n=n)]
        assert views[-1].done
        return views[-1]


class FakeRounds:
    """One finished round 1; `start` queues the next, which stays queued until a test changes it."""

    def __init__(self, deployment: FakeDeployment) -> None:
        self._deployment = deployment
        self.engine = EngineStatus(state="ready", model="starter", loaded=(BASE, "v1"))
        self.rounds = {1: fake_round(1, RoundStatus.PROMOTED, version="v1")}
        self.trouble = ""
        self.crash: Exception | None = None
        self.training = FakeTraining()

    def status(self) -> StudioStatus:
        if self.crash is not None:
            raise self.crash
        active = next((view for view in self.rounds.values() if view.status.is_active), None)
        return StudioStatus(
            live=self._deployment.live(),
            engine=self.engine,
            new_pairs=12,
            schedule=ScheduleView(True, 5, 30, "auto"),
            round=active,
            next_run_at=NOW,
            storage="storage",
        )

    def write_trouble(self) -> str:
        return self.trouble

    def start(self, *, trigger: str) -> RoundView:
        if any(view.status.is_active for view in self.rounds.values()):
            raise Conflict("A round is running already")
        number = max(self.rounds) + 1
        self.rounds[number] = replace(fake_round(number, RoundStatus.QUEUED), trigger=trigger)
        return self.rounds[number]

    def cancel(self, number: int) -> RoundView:
        view = self.get(number)
        if not view.status.is_active:
            raise Conflict(f"round {number}: expected an active round, found it {view.status.value}")
        self.rounds[number] = replace(view, status=RoundStatus.CANCELLED)
        return self.rounds[number]

    def get(self, number: int) -> RoundView:
        if number not in self.rounds:
            raise NotFound(f"round: expected the number of a round, found {number}")
        return self.rounds[number]

    def list(self) -> list[RoundView]:
        return [self.rounds[number] for number in sorted(self.rounds, reverse=True)]

    def steps(self, number: int, since: int = 0) -> Sequence[StepProgress]:
        assert number in self.rounds
        return [
            StepProgress("training", step, 3, 1.5, {"loss": 1 / step, "grad_norm": float("inf")})
            for step in range(since + 1, 4)
        ]


class FakeData:
    """Keeps imported lines; exports two rows a chunk."""

    def __init__(self) -> None:
        self.prompts: list[str] = []
        self.pairs: list[str] = []
        self.fails_at_once = False

    def import_prompts(self, lines: Iterable[str]) -> ImportResult:
        return self._keep(self.prompts, lines)

    def import_pairs(self, lines: Iterable[str]) -> ImportResult:
        return self._keep(self.pairs, lines)

    def export_pairs(self, format: str) -> Iterator[bytes]:
        if self.fails_at_once:
            raise BadInput("format: parquet needs pyarrow; install dpo-studio[parquet]")
        yield f"{format} 1\n".encode()
        yield f"{format} 2\n".encode()

    def _keep(self, kept: list[str], lines: Iterable[str]) -> ImportResult:
        given = [line for line in lines if line.strip()]
        for number, line in enumerate(given, start=1):
            if "bad" in line:
                raise BadInput(f"line {number}: expected a prompt; nothing was imported")
        kept.extend(given)
        return ImportResult(len(given), 0)


class FakeStudio:
    """All fakes together."""

    def __init__(self, storage: Path) -> None:
        self.labeling = FakeLabeling()
        self.deployment = FakeDeployment()
        self.generation = FakeGeneration(self.deployment)
        self.rounds = FakeRounds(self.deployment)
        self.data = FakeData()
        self.settings = load_settings(storage=storage)

    @property
    def studio(self) -> Studio:
        """What the web receives."""
        parts: dict[str, Any] = {
            "engine": None,
            "labeling": self.labeling,
            "deployment": self.deployment,
            "generation": self.generation,
            "rounds": self.rounds,
            "data": self.data,
        }
        return Studio(settings=self.settings, **parts)


def fake_round(number: int, status: RoundStatus, version: str | None = None) -> RoundView:
    """A round's record with one number that JSON cannot hold."""
    return RoundView(
        number=number,
        status=status,
        trigger="schedule",
        reason="",
        num_pairs=30,
        num_train=25,
        num_heldout=5,
        settings=TrainSettings(),
        metrics={"heldout/accuracy": 0.8, "loss": float("nan")},
        verdict=Verdict(True, ("held-out accuracy 0.80",)) if version else None,
        version=version,
        created_at=NOW,
        started_at=None,
        finished_at=None,
        training=TRAINED if version else None,
    )
