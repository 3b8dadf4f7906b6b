"""When a scheduled round is due, and the ticker that asks.

The ticker only asks, often; what is due is decided from the last start that our own database knows, so a
missed tick, a second process or a restart neither skips nor doubles a round. APScheduler is used with a
memory store and in UTC alone: its stores are pickles and must not be shared, and local time skips or
doubles runs when clocks change.
"""

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

_log = logging.getLogger(__name__)

TICK_S = 5.0


def is_due(now: datetime, last_started_at: datetime | None, interval_minutes: float) -> bool:
    """Whether a round may start by schedule: the first at once, then one interval after the last start.

    However long nobody asked, one start is due and not several. A last start further in the future than an
    interval means that the clock was set back; waiting for it could take for ever, so that is due too.
    """
    if last_started_at is None:
        return True
    interval = timedelta(minutes=interval_minutes)
    since = _utc(now) - _utc(last_started_at)
    return since >= interval or since < -interval


def next_due(now: datetime, last_started_at: datetime | None, interval_minutes: float) -> datetime:
    """The earliest time, not before `now`, at which `is_due` says yes."""
    if last_started_at is None or is_due(now, last_started_at, interval_minutes):
        return _utc(now)
    return _utc(last_started_at) + timedelta(minutes=interval_minutes)


class Ticker:
    """Awaits `tick` every `tick_s` seconds, one at a time; a slow tick makes the next ones fall away."""

    def __init__(self, tick: Callable[[], Awaitable[None]], tick_s: float = TICK_S) -> None:
        self._tick = tick
        self._scheduler = AsyncIOScheduler(timezone=UTC)
        self._scheduler.add_job(
            self._run,
            IntervalTrigger(seconds=tick_s, timezone=UTC),
            coalesce=True,
            max_instances=1,
            # A late tick is as good as one on time.
            misfire_grace_time=None,
        )
        # It warns at every tick that falls away, which here is meant.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)

    def start(self) -> None:
        """Begin to tick. Call inside the event loop that the ticks shall run in."""
        self._scheduler.start()

    def stop(self) -> None:
        """No further ticks. A tick that is running is cancelled."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)

    async def _run(self) -> None:
        # A failing tick must not end the schedule; the next one tries again.
        try:
            await self._tick()
        except Exception:
            _log.exception("A scheduled tick failed")


def _utc(time: datetime) -> datetime:
    assert time.tzinfo is not None, "times must carry their zone"
    return time.astimezone(UTC)
