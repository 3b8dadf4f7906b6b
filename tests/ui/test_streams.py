"""Pacing drops views in between and never the last; closing a stream closes its sources."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from dpo_studio.ui.streams import paced, side_by_side


async def counting(
    last: int, *, every_s: float = 0.0, closed: list[int] | None = None
) -> AsyncGenerator[int, None]:
    try:
        for number in range(1, last + 1):
            await asyncio.sleep(every_s)
            yield number
    finally:
        if closed is not None:
            closed.append(last)


async def failing(after: int) -> AsyncGenerator[int, None]:
    async for number in counting(after):
        yield number
    raise ValueError("broken")


async def test_a_fast_source_is_thinned_but_its_last_view_arrives() -> None:
    seen = [view async for view in paced(counting(500), pace_s=0.01)]
    assert seen[-1] == 500
    assert len(seen) < 100
    assert seen == sorted(set(seen))


async def test_a_slow_source_loses_nothing() -> None:
    assert [view async for view in paced(counting(4, every_s=0.02), pace_s=0.001)] == [1, 2, 3, 4]


async def test_an_empty_source_gives_an_empty_stream() -> None:
    assert [view async for view in paced(counting(0), pace_s=0.0)] == []


async def test_two_sources_advance_together_and_both_end_complete() -> None:
    seen = [
        pair
        async for pair in side_by_side([counting(3, every_s=0.01), counting(9, every_s=0.01)], pace_s=0.001)
    ]
    assert seen[-1] == (3, 9)
    assert any(left == right for left, right in seen)


async def test_a_source_that_has_not_begun_is_none() -> None:
    stream = side_by_side([counting(1), counting(1, every_s=0.05)], pace_s=0.001)
    assert await anext(stream) == (1, None)
    await stream.aclose()


async def test_closing_the_stream_closes_every_source() -> None:
    closed: list[int] = []
    stream = side_by_side(
        [counting(1000, every_s=0.01, closed=closed), counting(2000, every_s=0.01, closed=closed)],
        pace_s=0.001,
    )
    await anext(stream)
    await stream.aclose()
    assert sorted(closed) == [1000, 2000]


async def test_an_error_of_one_source_is_raised_and_closes_the_other() -> None:
    closed: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        async for _ in side_by_side([failing(2), counting(1000, every_s=0.01, closed=closed)], pace_s=0.001):
            pass
    assert closed == [1000]


async def test_views_come_no_faster_than_the_pace() -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    seen = [view async for view in paced(counting(200, every_s=0.001), pace_s=0.05)]
    assert len(seen) <= (loop.time() - began) / 0.05 + 2
