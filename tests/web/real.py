"""The real services over a real database, with a fake engine and nothing running in the background."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from dpo_studio.domain.chat import SamplingParams
from dpo_studio.rounds.gate import GateThresholds
from dpo_studio.rounds.launcher import LaunchSettings
from dpo_studio.services import boot
from dpo_studio.services.comparison_maker import ComparisonMaker
from dpo_studio.services.data import DataService
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.generation import GenerationService
from dpo_studio.services.labeling import LabelingService
from dpo_studio.services.pair_factory import PairFactory
from dpo_studio.services.round_lease import RoundLease
from dpo_studio.services.round_preparation import RoundPreparation
from dpo_studio.services.round_runner import RoundRunner
from dpo_studio.services.rounds import RoundService
from dpo_studio.services.studio import Studio
from dpo_studio.services.views import ScheduleView
from dpo_studio.settings import load_settings
from dpo_studio.store.database import Database
from tests.fakes import FakeEngine


def now() -> datetime:
    return datetime.now(UTC)


@contextmanager
def real_studio(storage: Path) -> Iterator[Studio]:
    """A studio whose rounds queue up and never run."""
    settings = load_settings(storage=storage)
    paths = settings.paths
    paths.root.mkdir(parents=True, exist_ok=True)
    database = Database(paths.database)
    database.open()
    boot.seed_queue(database, ["what is tea?", "a gift for mum", "plan my sunday"], now=now)
    engine = FakeEngine()
    deployment = DeploymentService(database, engine, paths, smoke_prompts=("hi",), now=now)
    maker = ComparisonMaker(
        database, engine, deployment, sampling=SamplingParams(), now=now, random_source=random.Random(5)
    )
    factory = PairFactory(database, maker, ready_pairs=2, now=now)
    thresholds, launch = GateThresholds(), LaunchSettings()
    yield Studio(
        settings=settings,
        engine=engine,
        labeling=LabelingService(database, maker, factory, deployment, min_new_pairs=lambda: 30, now=now),
        generation=GenerationService(engine, deployment),
        deployment=deployment,
        rounds=RoundService(
            database,
            engine,
            deployment,
            RoundPreparation(database, engine, deployment, settings, probe_prompts=("hi",), now=now),
            RoundRunner(
                database,
                engine,
                deployment,
                paths,
                thresholds=thresholds,
                lease=RoundLease(database, owner="test", now=now),
                launch=launch,
                now=now,
            ),
            default_schedule=ScheduleView(True, 5, 30, "auto"),
            undo_window=timedelta(seconds=60),
            storage=str(paths.root),
            now=now,
        ),
        data=DataService(database),
    )
    database.close()
