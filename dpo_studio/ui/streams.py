"""Streams of views on their way to a browser: fewer of them, and two side by side.

Nothing here knows a component. Closing one of these generators closes its sources, which cancels the
generation behind them.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

View = TypeVar("View")

PACE_S = 0.05
"""At most 20 updates a second: each costs about 1 ms of server CPU, and nobody reads faster."""


async def paced(source: AsyncGenerator[View, None], *, pace_s: float = PACE_S) -> AsyncGenerator[View, None]:
    """The newest view at most every `pace_s`; views in between are dropped, the last one never is."""
    async with aclosing(side_by_side([source], pace_s=pace_s)) as views:
        async for (view,) in views:
            assert view is not None
            yield view


async def side_by_side(
    sources: Sequence[AsyncGenerator[View, None]], *, pace_s: float = PACE_S
) -> AsyncGenerator[tuple[View | None, ...], None]:
    """The newest view of every source, whenever any has changed; None until a source has begun.

    Ends when all have ended. The first error of any source closes the others and is raised.
    """
    newest: list[View | None] = [None] * len(sources)
    changed = asyncio.Event()

    async def follow(index: int) -> None:
        async with aclosing(sources[index]) as views:
            async for view in views:
                newest[index] = view
                changed.set()

    tasks = [asyncio.create_task(follow(index)) for index in range(len(sources))]
    ended = asyncio.gather(*tasks)
    ended.add_done_callback(lambda _: changed.set())
    shown: tuple[View | None, ...] = tuple(newest)
    try:
        while not ended.done() or changed.is_set():
            await changed.wait()
            changed.clear()
            if ended.done():
                ended.result()
            if tuple(newest) != shown:
                shown = tuple(newest)
                yield shown
            if not ended.done():
                await asyncio.sleep(pace_s)
        ended.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, ended, return_exceptions=True)
