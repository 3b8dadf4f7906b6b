"""RoundLease: the right to run rounds, held by one process at a time and lost by falling asleep.

Taken before a worker starts and checked, by its token, in the transactions that move a round on and the
live pointer with it: a process that was frozen past the lease's end wakes up to find its result refused.
The event loop never waits for the database here. All of it runs in one thread of the lease's own, so that
giving back comes after taking and renewing, also when the taker was cancelled meanwhile.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TypeVar

from dpo_studio.errors import Busy, StorageError
from dpo_studio.store import leases
from dpo_studio.store.database import Database
from dpo_studio.store.leases import LeaseHold

NAME = "rounds"
TTL_S = 20.0
"""How long a successor waits after a kill -9."""
RENEW_S = 5.0
T = TypeVar("T")
logger = logging.getLogger(__name__)


class RoundLease:
    """Takes, renews and gives back one lease. `owner` names this process in the table."""

    def __init__(self, database: Database, *, owner: str, now: Callable[[], datetime]) -> None:
        self._database = database
        self._owner = owner
        self._now = now
        self._clerk = ThreadPoolExecutor(1, thread_name_prefix="round-lease")
        self._hold: LeaseHold | None = None
        """Written by the clerk alone."""

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[LeaseHold]:
        """Wait until the lease is free, keep it renewed for the block, give it back."""
        renewing: asyncio.Task[None] | None = None
        try:
            hold = await self._take()
            renewing = asyncio.create_task(self._keep_renewed(hold))
            yield hold
        finally:
            if renewing is not None:
                renewing.cancel()
            # Shielded: a second cancellation stops the waiting and not the giving back.
            await asyncio.shield(self._asked(self._give_back))

    async def _take(self) -> LeaseHold:
        while True:
            hold = await self._asked(self._try_to_take)
            if hold is not None:
                return hold
            await asyncio.sleep(1.0)

    async def _keep_renewed(self, hold: LeaseHold) -> None:
        is_ours = True
        while is_ours:
            await asyncio.sleep(RENEW_S)
            is_ours = await self._asked(lambda: self._renew(hold))
        logger.error("the lease of the round was lost to another process; its result will be refused")

    def _asked(self, work: Callable[[], T]) -> "asyncio.Future[T]":
        return asyncio.get_running_loop().run_in_executor(self._clerk, work)

    def _try_to_take(self) -> LeaseHold | None:
        with self._database.write() as session:
            hold = leases.acquire(NAME, self._owner, ttl_s=TTL_S, now=self._now(), session=session)
        self._hold = hold
        return hold

    def _renew(self, hold: LeaseHold) -> bool:
        # A full disk for a moment is no reason to lose the round: there is time for three more tries.
        with contextlib.suppress(StorageError, Busy), self._database.write() as session:
            return leases.renew(hold, ttl_s=TTL_S, now=self._now(), session=session)
        return True

    def _give_back(self) -> None:
        hold, self._hold = self._hold, None
        if hold is not None:
            with contextlib.suppress(StorageError, Busy), self._database.write() as session:
                leases.release(hold, now=self._now(), session=session)
