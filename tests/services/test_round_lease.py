"""The lease on rounds: held for a block, renewed, given back whatever ends the block."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_studio.services import round_lease
from dpo_studio.services.round_lease import NAME, RoundLease
from dpo_studio.store import leases
from dpo_studio.store.database import Database
from dpo_studio.store.leases import LeaseHold
from tests.services.conftest import Clock


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "studio.db")
    database.open()
    yield database
    database.close()


def lease_of(database: Database, clock: Clock) -> RoundLease:
    return RoundLease(database, owner="this process", now=clock)


def taken_by_another(database: Database, clock: Clock) -> LeaseHold | None:
    with database.write() as session:
        return leases.acquire(NAME, "another", ttl_s=60, now=clock(), session=session)


@contextlib.contextmanager
def locked(database: Database) -> Iterator[None]:
    """Another process is in the middle of a long write."""
    with contextlib.closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


async def holder(database: Database, clock: Clock) -> "asyncio.Task[None]":
    """A task that has the lease and keeps it until it is cancelled."""
    begun = asyncio.Event()

    async def hold_for_ever() -> None:
        async with lease_of(database, clock).held():
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold_for_ever())
    await asyncio.wait_for(begun.wait(), 5)
    return task


async def test_the_lease_is_held_for_the_block_and_free_after_it(database: Database) -> None:
    clock = Clock()
    async with lease_of(database, clock).held():
        assert taken_by_another(database, clock) is None
    assert taken_by_another(database, clock) is not None


async def test_a_cancelled_block_gives_the_lease_back(database: Database) -> None:
    clock = Clock()
    task = await holder(database, clock)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert taken_by_another(database, clock) is not None


async def test_a_lease_that_came_after_the_cancellation_is_given_back(database: Database) -> None:
    """Cancelled while the database was locked: the thread goes on, and what it got nobody would return."""
    clock = Clock()
    lease = lease_of(database, clock)

    async def hold() -> None:
        async with lease.held():
            raise AssertionError("it was cancelled before it could hold anything")

    with locked(database):
        task = asyncio.create_task(hold())
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.sleep(0.1)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert taken_by_another(database, clock) is not None


async def test_a_second_cancellation_does_not_keep_the_lease(database: Database) -> None:
    clock = Clock()
    task = await holder(database, clock)
    with locked(database):
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0.1)
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        while taken_by_another(database, clock) is None:
            await asyncio.sleep(0.05)


async def test_a_long_block_keeps_its_lease(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_lease, "RENEW_S", 0.02)
    clock = Clock()
    async with lease_of(database, clock).held():
        for _ in range(4):
            clock.tick(seconds=round_lease.TTL_S / 2)
            await asyncio.sleep(0.2)
        assert taken_by_another(database, clock) is None
