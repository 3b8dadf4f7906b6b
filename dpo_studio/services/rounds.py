"""RoundService: start, watch, cancel and judge rounds; the schedule that starts them by itself.

At most one round is active. The table is the truth: a round found active at boot was interrupted, and goes on
from its checkpoint when `boot` has put it back into the queue. Its reason says so, from then on and for ever.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sqlmodel import Session

from dpo_studio.domain.chat import ChatEngine
from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.domain.round import RoundStatus, StepProgress
from dpo_studio.errors import BadInput, Conflict, EngineUnavailable, NotFound, StudioError
from dpo_studio.rounds.schedule import is_due, next_due
from dpo_studio.services import interruptions
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.interruptions import Interruptions
from dpo_studio.services.round_preparation import RoundPreparation
from dpo_studio.services.round_runner import RoundRunner
from dpo_studio.services.training_choice import TrainingChoices
from dpo_studio.services.views import RoundsView, RoundView, ScheduleView, StudioStatus
from dpo_studio.store import pairs, rounds, studio_settings
from dpo_studio.store.database import Database
from dpo_studio.store.rounds import RoundRecord

SCHEDULE_KEY = "schedule"
HEARTBEAT_KEY = "heartbeat"
BY_SCHEDULE = "schedule"
RETRY_S = 2.0
logger = logging.getLogger(__name__)


class RoundService:
    """What people and the clock do with rounds."""

    def __init__(
        self,
        database: Database,
        engine: ChatEngine,
        deployment: DeploymentService,
        preparation: RoundPreparation,
        runner: RoundRunner,
        *,
        default_schedule: ScheduleView,
        undo_window: timedelta,
        storage: str,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._engine = engine
        self._deployment = deployment
        self._preparation = preparation
        self._runner = runner
        self._default_schedule = default_schedule
        self._undo_window = undo_window
        self._storage = storage
        self._now = now
        self.training = TrainingChoices(database, engine, now=now)
        """How rounds that start from now on train."""
        self._queued = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self, *, trigger: str, until: datetime | None = None) -> RoundView:
        """Snapshot every eligible pair and queue a round. Safe from any thread.

        `until` leaves out younger votes; None takes all. Raises Conflict when a round is active, BadInput
        when there is no trainable pair, EngineUnavailable before the model has been loaded once.
        """
        status = self._engine.status
        if not status.model_sha256:
            raise EngineUnavailable("The model is still loading; a round can start when it is ready")
        number = self._preparation.prepare(
            trigger=trigger,
            until=until or self._now() + timedelta(seconds=1),
            settings=self.training.settings(),
        )
        self._wake()
        return self.get(number)

    def cancel(self, number: int) -> RoundView:
        """Stop an active round within one step. Raises Conflict when it is not active."""
        view = self.get(number)
        if not view.status.is_active:
            raise Conflict(f"round {number}: expected an active round, found it {view.status.value}")
        if view.status is RoundStatus.QUEUED:
            self._finish(number, RoundStatus.CANCELLED, _cancelled_in_the_queue(view))
            # Its worker may have been started since: it would train for nobody and hold up the next round.
            self._runner.cancel(number)
        elif not self._runner.cancel(number):
            raise Conflict(
                f"round {number}: its training has ended and the gate is looking at it; wait a moment"
            )
        return self.get(number)

    async def approve(self, number: int, *, actor: str) -> RoundView:
        """Promote a round that waits for a person."""
        view = await asyncio.to_thread(self._waiting, number)
        assert view.version is not None
        await self._runner.promote(number, view.version, actor=actor)
        return await asyncio.to_thread(self.get, number)

    def reject(self, number: int, *, actor: str) -> RoundView:
        """Turn down a round that waits for a person; its version stays for comparison."""
        self._waiting(number)
        self._finish(number, RoundStatus.REJECTED, f"Turned down by {actor}")
        return self.get(number)

    def get(self, number: int) -> RoundView:
        """One round. Raises NotFound."""
        with self._database.read() as session:
            record = rounds.get_round(number, session=session)
            cut_off = interruptions.of_rounds(session)
        if record is None:
            raise NotFound(f"round: expected the number of a round, found {number}")
        return self._view(record, cut_off)

    def list(self) -> list[RoundView]:
        """Newest first."""
        with self._database.read() as session:
            cut_off = interruptions.of_rounds(session)
            return [self._view(record, cut_off) for record in rounds.list_rounds(session=session)]

    def steps(self, number: int, since: int = 0) -> Sequence[StepProgress]:
        """Training steps after step `since`, oldest first."""
        with self._database.read() as session:
            return rounds.list_steps(number, since=since, session=session)

    async def wait(self, number: int, *, poll_s: float = 0.2) -> RoundView:
        """The round once it is final or waits for a person."""
        while (view := await asyncio.to_thread(self.get, number)).status.is_active:
            await asyncio.sleep(poll_s)
        return view

    def schedule(self) -> ScheduleView:
        """The schedule in force."""
        with self._database.read() as session:
            stored = studio_settings.get_setting(SCHEDULE_KEY, session=session)
        return from_json(ScheduleView, stored) if stored is not None else self._default_schedule

    def set_schedule(self, schedule: ScheduleView, *, actor: str) -> ScheduleView:
        """Change when rounds start and who decides after the gate."""
        if not 1 <= schedule.interval_minutes <= 43_200:
            raise BadInput(f"interval_minutes: expected 1 to 43200, found {schedule.interval_minutes}")
        if not 1 <= schedule.min_new_pairs <= 1_000_000:
            raise BadInput(f"min_new_pairs: expected 1 to 1000000, found {schedule.min_new_pairs}")
        with self._database.write() as session:
            studio_settings.change_setting(
                SCHEDULE_KEY, to_json(schedule), actor=actor, now=self._now(), session=session
            )
        return schedule

    def status(self) -> StudioStatus:
        """The studio at a glance."""
        now = self._now()
        with self._database.read() as session:
            new_pairs = pairs.count_new(until=now + timedelta(seconds=1), session=session)
            current = _current(session)
            last = _last_started(session)
            cut_off = interruptions.of_rounds(session)
        schedule = self.schedule()
        return StudioStatus(
            live=self._deployment.live(),
            engine=self._engine.status,
            new_pairs=new_pairs,
            schedule=schedule,
            round=self._view(current, cut_off) if current else None,
            next_run_at=next_due(now, last, schedule.interval_minutes) if schedule.enabled else None,
            storage=self._storage,
            detail=self._deployment.trouble(),
        )

    def overview(self) -> RoundsView:
        """Status, rounds and versions, for a page that shows them all."""
        return RoundsView(self.status(), tuple(self.list()), tuple(self._deployment.versions()))

    async def tick(self) -> None:
        """Called by the clock: start a round when the interval has passed and enough pairs are new."""
        until = self._now() - self._undo_window
        if await asyncio.to_thread(self._is_round_due, until):
            try:
                await asyncio.to_thread(self.start, trigger=BY_SCHEDULE, until=until)
            except (Conflict, BadInput) as error:
                # Somebody pressed "Train now" in between, or every new pair was withdrawn.
                logger.info("the scheduled round did not start: %s", error)

    def _is_round_due(self, until: datetime) -> bool:
        schedule = self.schedule()
        if not schedule.enabled or self._engine.status.state != "ready":
            return False
        with self._database.read() as session:
            if rounds.active_round(session=session) is not None:
                return False
            last = _last_started(session)
            new_pairs = pairs.count_new(until=until, session=session)
        return new_pairs >= schedule.min_new_pairs and is_due(self._now(), last, schedule.interval_minutes)

    async def run(self) -> None:
        """Work off queued rounds until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._queued.clear()
            try:
                number = await asyncio.to_thread(self._next_queued)
            except StudioError as error:
                logger.warning("the queue of rounds could not be read: %s", error)
                await asyncio.sleep(RETRY_S)
                continue
            if number is None:
                await self._queued.wait()
            else:
                await self._runner.run_one(number, is_gate_manual=lambda: self.schedule().gate == "manual")

    def write_trouble(self) -> str:
        """Why nothing can be saved, or an empty string. Saves a line, as only that tells a full disk."""
        try:
            with self._database.write() as session:
                studio_settings.put_setting(HEARTBEAT_KEY, self._now().isoformat(), session=session)
        except StudioError as error:
            return str(error)
        return ""

    def _next_queued(self) -> int | None:
        with self._database.read() as session:
            queued = rounds.active_round(session=session)
        # The data's hash is recorded last: before that the round's folder is still being written.
        if queued is None or queued.status is not RoundStatus.QUEUED or not queued.dataset_sha256:
            return None
        return queued.number

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._queued.set)

    def _waiting(self, number: int) -> RoundView:
        view = self.get(number)
        if view.status is not RoundStatus.WAITING:
            raise Conflict(f"round {number}: expected it to wait for a person, found it {view.status.value}")
        return view

    def _finish(self, number: int, status: RoundStatus, reason: str) -> None:
        with self._database.write() as session:
            rounds.set_status(number, status, reason=reason, now=self._now(), session=session)

    def _view(self, record: RoundRecord, cut_off: Mapping[int, Interruptions]) -> RoundView:
        view = RoundView(
            number=record.number,
            status=record.status,
            trigger=record.trigger,
            reason=_reason(record, cut_off.get(record.number, Interruptions())),
            num_pairs=record.num_pairs,
            num_train=record.num_train,
            num_heldout=record.num_heldout,
            settings=record.settings,
            metrics=record.metrics,
            verdict=record.verdict,
            training=record.training,
            version=record.version,
            created_at=record.created_at,
            started_at=record.started_at,
            finished_at=record.finished_at,
        )
        return replace(
            view,
            progress=self._runner.progress(record.number),
            is_cancelling=record.status.is_active and self._runner.is_cancelling(record.number),
        )


def _cancelled_in_the_queue(view: RoundView) -> str:
    return "Cancelled before it went on" if view.started_at else "Cancelled before it started"


def _reason(record: RoundRecord, cut_off: Interruptions) -> str:
    """Why the round ended as it did, and that it went on after interruptions."""
    words = cut_off.in_words()
    return ". ".join(filter(None, [record.reason.removesuffix(".") if words else record.reason, words]))


def _current(session: Session) -> RoundRecord | None:
    """The active round, else the newest one that waits for a person."""
    waiting = rounds.rounds_with([RoundStatus.WAITING], session=session)
    return rounds.active_round(session=session) or next(iter(waiting), None)


def _last_started(session: Session) -> datetime | None:
    last = rounds.last_round(session=session)
    return last.created_at if last else None
