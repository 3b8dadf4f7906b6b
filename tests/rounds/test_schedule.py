"""Schedule: nothing skipped, nothing doubled, whatever the clock does; and a ticker that keeps ticking."""

import asyncio
import itertools
import logging
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from dpo_studio.rounds.schedule import Ticker, is_due, next_due

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def starts(first: datetime, last: datetime, tick: timedelta, interval_minutes: float) -> list[datetime]:
    """What a studio that ticks all the time would start."""
    started: list[datetime] = []
    now = first
    while now <= last:
        if is_due(now, started[-1] if started else None, interval_minutes):
            started.append(now)
        now = (now.astimezone(UTC) + tick).astimezone(first.tzinfo)
    return started


def test_the_first_round_is_due_at_once() -> None:
    assert is_due(START, None, 5)


def test_a_round_is_due_exactly_one_interval_after_the_last() -> None:
    assert not is_due(START + timedelta(minutes=5, microseconds=-1), START, 5)
    assert is_due(START + timedelta(minutes=5), START, 5)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "UTC"])
def test_two_years_of_hourly_rounds_are_evenly_spaced_over_clock_changes(zone: str) -> None:
    first = datetime(2026, 1, 1, tzinfo=ZoneInfo(zone))
    started = starts(first, datetime(2028, 1, 1, tzinfo=ZoneInfo(zone)), timedelta(minutes=30), 60)
    gaps = {later.astimezone(UTC) - earlier.astimezone(UTC) for earlier, later in itertools.pairwise(started)}
    assert gaps == {timedelta(hours=1)}
    assert len(started) == 2 * 365 * 24 + 1


def test_six_hours_of_downtime_give_exactly_one_catch_up() -> None:
    back = START + timedelta(hours=6)
    assert is_due(back, START, 5)
    assert not is_due(back + timedelta(seconds=30), back, 5)


def test_a_clock_set_back_a_little_does_not_double_a_round() -> None:
    assert not is_due(START - timedelta(minutes=4), START, 5)


def test_a_clock_set_back_for_good_does_not_stop_rounds() -> None:
    assert is_due(START - timedelta(days=365), START, 5)


def test_next_due_is_when_is_due_first_says_yes() -> None:
    for now in (START, START + timedelta(minutes=3), START + timedelta(hours=2), START - timedelta(days=9)):
        due = next_due(now, START, 5)
        assert due >= now
        assert is_due(due, START, 5)
        assert due == now or not is_due(due - timedelta(microseconds=1), START, 5)


def test_naive_times_are_our_bug() -> None:
    with pytest.raises(AssertionError):
        is_due(datetime(2026, 1, 1), START, 5)


async def test_the_ticker_ticks_and_stops() -> None:
    ticked = asyncio.Event()
    count = 0

    async def tick() -> None:
        nonlocal count
        count += 1
        ticked.set()

    ticker = Ticker(tick, 0.05)
    ticker.start()
    await asyncio.wait_for(ticked.wait(), 5)
    ticker.stop()
    await asyncio.sleep(0.05)
    stopped_at = count
    await asyncio.sleep(0.2)
    assert count == stopped_at


async def test_a_failing_tick_does_not_end_the_schedule(caplog: pytest.LogCaptureFixture) -> None:
    again = asyncio.Event()
    count = 0

    async def tick() -> None:
        nonlocal count
        count += 1
        if count == 1:
            raise RuntimeError("disk full")
        again.set()

    ticker = Ticker(tick, 0.05)
    ticker.start()
    with caplog.at_level(logging.ERROR, "dpo_studio"):
        await asyncio.wait_for(again.wait(), 5)
    ticker.stop()
    assert "A scheduled tick failed" in caplog.text


async def test_a_slow_tick_never_runs_twice_at_once() -> None:
    running = most = count = 0
    enough = asyncio.Event()

    async def tick() -> None:
        nonlocal running, most, count
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.15)
        running -= 1
        count += 1
        if count == 3:
            enough.set()

    ticker = Ticker(tick, 0.03)
    ticker.start()
    await asyncio.wait_for(enough.wait(), 10)
    ticker.stop()
    assert most == 1
