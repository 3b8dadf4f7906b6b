"""Leases expire by themselves, and a late holder is found out."""

import threading

import pytest

from dpo_studio.errors import Conflict
from dpo_studio.store import leases
from dpo_studio.store.database import Database
from dpo_studio.store.leases import LeaseHold
from tests.store.makers import at


def take(db: Database, owner: str, second: float, ttl_s: float = 10) -> LeaseHold | None:
    with db.write() as session:
        return leases.acquire("training", owner, ttl_s=ttl_s, now=at(second), session=session)


def test_one_holder_until_the_time_is_over(db: Database) -> None:
    first = take(db, "one", 0)
    assert first == LeaseHold("training", "one", 1)
    assert take(db, "two", 9.9) is None
    assert take(db, "one", 9.9) is None
    assert take(db, "two", 10) == LeaseHold("training", "two", 2)


def test_leases_of_other_names_are_free(db: Database) -> None:
    take(db, "one", 0)
    with db.write() as session:
        other = leases.acquire("backup", "two", ttl_s=1, now=at(0), session=session)
    assert other == LeaseHold("backup", "two", 1)


def test_twenty_at_once_have_one_winner(db: Database) -> None:
    winners: list[LeaseHold | None] = []
    gate = threading.Barrier(20)

    def race(owner: str) -> None:
        gate.wait(20)
        winners.append(take(db, owner, 0))

    threads = [threading.Thread(target=race, args=(f"owner-{n}",)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([hold for hold in winners if hold]) == 1


def test_a_renewed_lease_lives_on_and_a_lost_one_cannot_be_renewed(db: Database) -> None:
    hold = take(db, "one", 0)
    assert hold is not None
    with db.write() as session:
        assert leases.renew(hold, ttl_s=10, now=at(9), session=session)
        assert leases.is_held(hold, now=at(18), session=session)
        assert not leases.renew(hold, ttl_s=10, now=at(19), session=session)
    assert take(db, "two", 20) is not None
    with db.write() as session:
        assert not leases.renew(hold, ttl_s=10, now=at(20.5), session=session)


def test_the_token_of_a_late_holder_is_refused(db: Database) -> None:
    old = take(db, "one", 0)
    new = take(db, "two", 11)
    assert old is not None and new is not None
    with db.write() as session:
        leases.require(new, now=at(12), session=session)
        with pytest.raises(Conflict, match="training"):
            leases.require(old, now=at(12), session=session)


def test_a_released_lease_is_free_at_once_with_a_greater_token(db: Database) -> None:
    hold = take(db, "one", 0)
    assert hold is not None
    with db.write() as session:
        leases.release(hold, now=at(1), session=session)
        assert not leases.is_held(hold, now=at(1), session=session)
    assert take(db, "one", 1) == LeaseHold("training", "one", 2)


def test_releasing_a_lost_lease_does_not_take_it_from_the_next(db: Database) -> None:
    old = take(db, "one", 0)
    new = take(db, "two", 11)
    assert old is not None and new is not None
    with db.write() as session:
        leases.release(old, now=at(12), session=session)
        assert leases.is_held(new, now=at(12), session=session)
