"""Composition: the one place where real parts are built and wired, and started and stopped in order.

`build` touches the disk but starts nothing; `running` and `attended` start the parts, and stop them
whatever happens. One process owns a storage folder: a lock file says so.
"""

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import random
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from dpo_studio import starter
from dpo_studio.domain.chat import ChatEngine, SamplingParams
from dpo_studio.errors import SettingsError, StorageError
from dpo_studio.rounds.gate import GateThresholds
from dpo_studio.rounds.launcher import LaunchSettings
from dpo_studio.rounds.schedule import Ticker
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
from dpo_studio.serving.supervisor import EngineSettings, EngineSupervisor
from dpo_studio.settings import Settings
from dpo_studio.store.database import Database
from dpo_studio.ui.app import mount
from dpo_studio.web.app import create_app
from dpo_studio.web.server import address_of, bind, run_server

GC_EVERY_S = 120.0
"""Gradio's sessions are cyclic garbage that outgrows the automatic collector."""
RESTART_S = 5.0
"""Between the death of a background task and its next life: a bug that strikes again fills no log."""
Work = Callable[[], Coroutine[Any, Any, None]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A built studio and the parts that need starting."""

    studio: Studio
    database: Database
    engine: EngineSupervisor
    factory: PairFactory
    ticker: Ticker


@contextlib.contextmanager
def owned_storage(settings: Settings) -> Iterator[None]:
    """Hold the storage folder's lock. Raises StorageError when it cannot be written or is in use."""
    root = settings.paths.root
    try:
        root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(root / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(
            f"storage: expected a folder that can be written, found {root} ({error.strerror}); "
            "choose another with --storage DIR"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(
                f"storage: {root} is in use by a running studio; stop it, or use its pages and its API"
            ) from error
        yield
    finally:
        os.close(descriptor)


def build(settings: Settings, *, takes_up: bool = False) -> Runtime:
    """Open the storage, reconcile it, and wire every part. Nothing runs yet.

    takes_up: a round that was cut off goes on. For a studio that stays; one that a command starts for
    itself ends that round.
    """
    paths = settings.paths
    database = Database(paths.database)
    database.open()
    boot.reconcile(database, paths, now=_now, takes_up=takes_up)
    boot.mend_live_pointer(database, paths, now=_now)
    boot.seed_queue(database, starter.seed_prompts(), now=_now)
    engine, deployment = _build_serving(settings, database)
    sampling = SamplingParams(temperature=settings.temperature, max_tokens=settings.max_tokens)
    maker = ComparisonMaker(
        database, engine, deployment, sampling=sampling, now=_now, random_source=random.SystemRandom()
    )
    factory = PairFactory(database, maker, ready_pairs=settings.ready_pairs, now=_now)
    deployment.on_swap(factory.drop_superseded)
    rounds = _build_rounds(settings, database, engine, deployment, takes_up=takes_up)
    labeling = LabelingService(
        database,
        maker,
        factory,
        deployment,
        min_new_pairs=lambda: rounds.schedule().min_new_pairs,
        now=_now,
    )
    studio = Studio(
        settings=settings,
        engine=engine,
        labeling=labeling,
        generation=GenerationService(engine, deployment),
        deployment=deployment,
        rounds=rounds,
        data=DataService(database),
    )
    return Runtime(studio, database, engine, factory, Ticker(rounds.tick))


@contextlib.asynccontextmanager
async def running(runtime: Runtime) -> AsyncIterator[Studio]:
    """Start the engine (it loads in the background) and the round runner: enough for one command."""
    await runtime.engine.start()
    try:
        async with _tasks(rounds=runtime.studio.rounds.run):
            yield runtime.studio
    finally:
        await runtime.engine.stop()
        runtime.database.close()


@contextlib.asynccontextmanager
async def attended(runtime: Runtime) -> AsyncIterator[None]:
    """What a studio with visitors does by itself: prepare comparisons, start rounds by the clock."""
    async with _tasks(factory=runtime.factory.run, garbage=_collect_garbage):
        runtime.ticker.start()
        try:
            yield
        finally:
            runtime.ticker.stop()


@contextlib.asynccontextmanager
async def _tasks(**works: Work) -> AsyncIterator[None]:
    """Background tasks for the length of the block. One that ends by an error starts again."""
    tasks = [asyncio.create_task(_kept_alive(name, work), name=name) for name, work in works.items()]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _kept_alive(name: str, work: Work) -> None:
    """Do `work` until it returns. A bug in it costs a pause and a line in the log, not the studio's loop."""
    while True:
        try:
            return await work()
        except Exception:
            logger.exception("the task %s ended by an error and starts again in %g s", name, RESTART_S)
            await asyncio.sleep(RESTART_S)


def _build_serving(settings: Settings, database: Database) -> tuple[EngineSupervisor, DeploymentService]:
    # The two need each other: a restarted engine asks which version to load.
    deployments: list[DeploymentService] = []
    engine = EngineSupervisor(
        EngineSettings(
            model=settings.model,
            device=settings.device,
            dtype=settings.dtype,
            chat_template=str(_readable(settings.chat_template)) if settings.chat_template else None,
            threads=settings.engine_threads,
        ),
        live_versions=lambda: deployments[0].folders_to_serve(),
        log_path=settings.paths.engine_log,
    )
    deployment = DeploymentService(
        database, engine, settings.paths, smoke_prompts=starter.smoke_prompts()[:2], now=_now
    )
    deployments.append(deployment)
    return engine, deployment


def _build_rounds(
    settings: Settings,
    database: Database,
    engine: EngineSupervisor,
    deployment: DeploymentService,
    *,
    takes_up: bool,
) -> RoundService:
    preparation = RoundPreparation(
        database, engine, deployment, settings, probe_prompts=starter.smoke_prompts(), now=_now
    )
    runner = RoundRunner(
        database,
        engine,
        deployment,
        settings.paths,
        thresholds=GateThresholds(),
        lease=RoundLease(database, owner=uuid.uuid4().hex, now=_now),
        launch=LaunchSettings(),
        now=_now,
        takes_up=takes_up,
    )
    return RoundService(
        database,
        engine,
        deployment,
        preparation,
        runner,
        default_schedule=ScheduleView(True, settings.interval_minutes, settings.min_new_pairs, settings.gate),
        undo_window=timedelta(seconds=settings.undo_window_s),
        storage=str(settings.paths.root),
        now=_now,
    )


async def _collect_garbage() -> None:
    while True:
        await asyncio.sleep(GC_EVERY_S)
        gc.collect()


def _readable(template: Path) -> Path:
    if not template.is_file():
        raise SettingsError(f"chat_template: expected a readable file, found {template}")
    return template.resolve()


def _now() -> datetime:
    return datetime.now(UTC)


def serve(settings: Settings) -> None:
    """Run the studio until a signal. Raises StudioError when it cannot start; nothing is left running."""
    configure_logging()
    listener = bind(settings.host, settings.port)
    with owned_storage(settings):
        runtime = build(settings, takes_up=True)

        @contextlib.asynccontextmanager
        async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
            async with (
                running(runtime),
                attended(runtime),
                _tasks(report=lambda: report_loading(runtime.engine, _say)),
            ):
                yield

        _say(f"DPO Studio starts at {address_of(listener)}")
        _say(f"  storage  {settings.paths.root}")
        _say(f"  model    {settings.model}")
        app = create_app(runtime.studio, mounts=lambda app: mount(app, runtime.studio), lifespan=lifespan)
        run_server(app, listener, announce=_say)


async def report_loading(engine: ChatEngine, say: Callable[[str], None], *, poll_s: float = 0.2) -> None:
    """Say what the engine does until it is ready or has failed, a line per change."""
    said = ""
    while True:
        status = engine.status
        line = f"  engine   {status.state}: {status.detail}".rstrip(": ")
        if status.state == "ready":
            size = f"{status.num_parameters / 1e6:.1f}M parameters"
            line = f"  engine   ready on {status.device} in {status.dtype}, {size}"
        if line != said:
            say(line)
            said = line
        if status.state in ("ready", "failed"):
            return
        await asyncio.sleep(poll_s)


def configure_logging() -> None:
    """Warnings and errors of every part, and our own news, on stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("dpo_studio").setLevel(logging.INFO)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
