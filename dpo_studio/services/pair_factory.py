"""PairFactory: keeps complete comparisons waiting for everyone who is labeling.

Works at background priority for labelers seen in the last minutes, for the live version only; what was
made from a superseded version and not yet shown is dropped at the swap and made afresh (design §4.5).
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from datetime import datetime, timedelta

from dpo_studio.errors import StudioError
from dpo_studio.services.comparison_maker import ComparisonMaker, ComparisonOrder
from dpo_studio.store import comparisons, prompts
from dpo_studio.store.database import Database
from dpo_studio.store.prompts import PromptRecord

ACTIVE_FOR = timedelta(minutes=10)
RETRY_S = 2.0
logger = logging.getLogger(__name__)


class PairFactory:
    """One background task; `touch` says who is here, `run` works until cancelled."""

    def __init__(
        self,
        database: Database,
        maker: ComparisonMaker,
        *,
        ready_pairs: int,
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._maker = maker
        self._ready_pairs = ready_pairs
        self._now = now
        self._seen: dict[str, datetime] = {}
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def touch(self, labeler: str) -> None:
        """This person is labeling now. May be called from any thread."""
        self._seen[labeler] = self._now()
        self._notify()

    def drop_superseded(self, live: str) -> None:
        """Forget waiting comparisons of other versions than `live`. May be called from any thread."""
        with self._database.write() as session:
            comparisons.drop_superseded(live, session=session)
        self._notify()

    async def run(self) -> None:
        """Fill up forever. One comparison at a time, the labeler with the fewest waiting first."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            try:
                labeler = await asyncio.to_thread(self._neediest)
                if labeler is None:
                    await self._wake.wait()
                else:
                    await self._make_one(labeler)
            except StudioError as error:
                # The model is restarting or busy with people, or the disk is: this can wait.
                logger.debug("no comparison was prepared: %s", error)
                await asyncio.sleep(RETRY_S)

    def _notify(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._wake.set)

    def _neediest(self) -> str | None:
        since = self._now() - ACTIVE_FOR
        self._seen = {labeler: at for labeler, at in list(self._seen.items()) if at > since}
        if not self._seen:
            return None
        with self._database.read() as session:
            waiting = {labeler: comparisons.count_ready(labeler, session=session) for labeler in self._seen}
        labeler = min(waiting, key=lambda name: waiting[name])
        return labeler if waiting[labeler] < self._ready_pairs else None

    async def _make_one(self, labeler: str) -> None:
        prompt = await asyncio.to_thread(self._next_prompt, labeler)
        if prompt is None:
            await asyncio.sleep(RETRY_S)
            return
        order = ComparisonOrder(
            prompt.messages, labeler, "queue", prompt_id=prompt.id, priority="background", is_shown=False
        )
        async with aclosing(self._maker.make(order)) as views:
            async for _ in views:
                pass

    def _next_prompt(self, labeler: str) -> PromptRecord | None:
        with self._database.read() as session:
            return prompts.next_prompt(labeler, session=session)
