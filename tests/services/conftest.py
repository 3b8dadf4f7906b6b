"""A studio over a real database and a fake engine; rounds run a scripted worker."""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dpo_studio.domain.chat import Message, SamplingParams
from dpo_studio.services import boot
from dpo_studio.services.comparison_maker import ComparisonMaker
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.labeling import LabelingService
from dpo_studio.services.pair_factory import PairFactory
from dpo_studio.settings import Settings
from dpo_studio.store.database import Database
from tests.fakes import FakeEngine

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


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
