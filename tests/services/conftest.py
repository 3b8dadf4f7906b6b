"""A studio over a real database and a fake engine; rounds run a scripted worker."""

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dpo_studio.domain.chat import Message, SamplingParams
from dpo_studio.domain.preference import Choice
from dpo_studio.rounds.gate import GateThresholds
from dpo_studio.rounds.launcher import LaunchSettings
from dpo_studio.services import boot, round_runner
from dpo_studio.services.comparison_maker import ComparisonMaker
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.labeling import LabelingService
from dpo_studio.services.pair_factory import PairFactory
from dpo_studio.services.round_lease import RoundLease
from dpo_studio.services.round_preparation import RoundPreparation
from dpo_studio.services.round_runner import RoundRunner
from dpo_studio.services.rounds import RoundService
from dpo_studio.services.views import RoundView, ScheduleView
from dpo_studio.settings import Settings
from dpo_studio.store.database import Database
from tests.fakes import FakeEngine

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SCHEDULE = ScheduleView(True, 10, 4, "auto")


@dataclass
class Clock:
    """Time as an argument: `tick` moves it."""

    at: datetime = START

    def __call__(self) -> datetime:
        return self.at

    def tick(self, **delta: float) -> None:
        self.at += timedelta(**delta)


@dataclass
class Bench:
    """Everything that a labeling test needs, by name."""

    settings: Settings
    database: Database
    engine: FakeEngine
    deployment: DeploymentService
    maker: ComparisonMaker
    factory: PairFactory
    labeling: LabelingService
    clock: Clock
    tasks: list["asyncio.Task[None]"] = field(default_factory=list)


def said(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    settings = Settings(storage=tmp_path / "storage", _env_file=None)  # type: ignore[call-arg]
    settings.paths.root.mkdir()
    clock = Clock()
    database = Database(settings.paths.database)
    database.open()
    boot.seed_queue(database, ["what is tea?", "a gift for mum", "plan my sunday"], now=clock)
    engine = FakeEngine()
    deployment = DeploymentService(database, engine, settings.paths, smoke_prompts=("hi",), now=clock)
    maker = ComparisonMaker(
        database, engine, deployment, sampling=SamplingParams(), now=clock, random_source=random.Random(5)
    )
    factory = PairFactory(database, maker, ready_pairs=2, now=clock)
    labeling = LabelingService(
        database, maker, factory, deployment, min_new_pairs=lambda: settings.min_new_pairs, now=clock
    )
    yield Bench(settings, database, engine, deployment, maker, factory, labeling, clock)
    database.close()


@dataclass
class Rounds:
    """The service with the script its worker follows."""

    bench: Bench
    service: RoundService
    script: Path
    task: "asyncio.Task[None]"
    """Works off the queue until cancelled, as in a running studio."""

    def plays(self, ending: str) -> None:
        self.script.write_text(ending)

    async def label(self, count: int) -> None:
        for number in range(count):
            view = await self.bench.labeling.next_ready("ann", said(f"a question of mine, {number}"))
            self.bench.labeling.vote("ann", view.id, Choice.A)

    async def train(self) -> RoundView:
        started = self.service.start(trigger="ann")
        async with asyncio.timeout(30):
            return await self.service.wait(started.number, poll_s=0.02)


@pytest.fixture
async def rounds(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Rounds]:
    """Parametrized indirectly by whether its runner lets a round wait for the next start of the studio."""
    monkeypatch.setattr(round_runner, "PAUSE_S", 0.02)
    script = tmp_path / "script"
    script.write_text("good")
    command = (sys.executable, "-m", "tests.services.scripted_worker", str(script))
    preparation = RoundPreparation(
        bench.database, bench.engine, bench.deployment, bench.settings, probe_prompts=("hi",), now=bench.clock
    )
    runner = RoundRunner(
        bench.database,
        bench.engine,
        bench.deployment,
        bench.settings.paths,
        thresholds=GateThresholds(),
        lease=RoundLease(bench.database, owner="this process", now=bench.clock),
        launch=LaunchSettings(command=command, poll_s=0.02),
        now=bench.clock,
        takes_up=getattr(request, "param", False),
    )
    service = RoundService(
        bench.database,
        bench.engine,
        bench.deployment,
        preparation,
        runner,
        default_schedule=SCHEDULE,
        undo_window=timedelta(seconds=60),
        storage=str(bench.settings.paths.root),
        now=bench.clock,
    )
    task = asyncio.create_task(service.run())
    await asyncio.sleep(0)
    yield Rounds(bench, service, script, task)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
