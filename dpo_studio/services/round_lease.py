"""RoundLease: the right to run rounds, held by one process at a time and lost by falling asleep.

Taken before a worker starts and checked, by its token, in the transactions that move a round on and the
live pointer with it: a process that was frozen past the lease's end wakes up to find its result refused.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime

from dpo_studio.errors import Busy, StorageError
from dpo_studio.store import leases
from dpo_studio.store.database import Database
from dpo_studio.store.leases import LeaseHold

NAME = "rounds"
TTL_S = 20.0
"""How long a successor waits after a kill -9."""
RENEW_S = 5.0


class RoundLease:
    """Takes, renews and gives back one lease. `owner` names this process in the table."""

    def __init__(self, database: Database, *, owner: str, now: Callable[[], datetime]) -> None:
        self._database = database
        self._owner = owner
        self._now = now

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[LeaseHold]:
        """Wait until the lease is free, keep it renewed for the block, give it back."""
        hold = await self._take()
        renewing = asyncio.create_task(self._renew(hold))
        try:
            yield hold
        finally:
            renewing.cancel()
            with contextlib.suppress(StorageError, Busy), self._database.write() as session:
                leases.release(hold, now=self._now(), session=session)

    async def _take(self) -> LeaseHold:
        while True:
            with self._database.write() as session:
                hold = leases.acquire(NAME, self._owner, ttl_s=TTL_S, now=self._now(), session=session)
            if hold is not None:
                return hold
            await asyncio.sleep(1.0)

    async def _renew(self, hold: LeaseHold) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            # A full disk for a moment is no reason to lose the round: there is time for three more tries.
            with contextlib.suppress(StorageError, Busy), self._database.write() as session:
                if not leases.renew(hold, ttl_s=TTL_S, now=self._now(), session=session):
                    return
