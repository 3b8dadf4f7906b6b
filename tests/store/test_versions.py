"""Versions are named once; the live pointer moves by compare-and-set."""

import threading

import pytest

from dpo_studio.domain.round import RoundStatus
from dpo_studio.errors import Conflict, NotFound, StudioError
from dpo_studio.store import versions
from dpo_studio.store.database import Database
from dpo_studio.store.versions import LiveState
from tests.store.makers import START, at, run_round


def publish(db: Database, count: int) -> None:
    """Rounds 1 to `count`, each with its version."""
    with db.write() as session:
        for _ in range(count):
            number = run_round(session, (), RoundStatus.WAITING)
            versions.add_version(f"v{number}", round_number=number, now=at(number), session=session)


def promote(db: Database, version: str) -> LiveState:
    with db.write() as session:
        serial = versions.get_live(session=session).serial
        return versions.set_live(version, expected_serial=serial, actor="ann", now=START, session=session)


def before(db: Database, version: str) -> str | None:
    with db.read() as session:
        return versions.promoted_before(version, session=session)


def test_base_is_live_at_first(db: Database) -> None:
    with db.read() as session:
        assert versions.get_live(session=session) == LiveState("base", 0)
        assert versions.list_versions(session=session) == []


def test_versions_are_listed_by_number_not_by_letter(db: Database) -> None:
    publish(db, 11)
    with db.read() as session:
        names = [record.name for record in versions.list_versions(session=session)]
        found = versions.get_version("v10", session=session)
        assert versions.get_version("v12", session=session) is None
    assert names == [f"v{n}" for n in range(1, 12)]
    assert found is not None and (found.round, found.created_at) == (10, at(10))


def test_a_name_is_never_given_twice(db: Database) -> None:
    publish(db, 1)
    with pytest.raises(Conflict, match="v1 exists"), db.write() as session:
        versions.add_version("v1", round_number=1, now=START, session=session)


def test_the_pointer_moves_and_stays_after_a_restart(db: Database) -> None:
    publish(db, 2)
    assert promote(db, "v1") == LiveState("v1", 1)
    assert promote(db, "v2") == LiveState("v2", 2)
    db.close()
    db.open()
    with db.read() as session:
        assert versions.get_live(session=session) == LiveState("v2", 2)


def test_a_promotion_on_old_knowledge_is_refused(db: Database) -> None:
    publish(db, 2)
    promote(db, "v1")
    for stale in (0, 2):
        with pytest.raises(Conflict), db.write() as session:
            versions.set_live("v2", expected_serial=stale, actor="bob", now=START, session=session)
    with db.read() as session:
        assert versions.get_live(session=session) == LiveState("v1", 1)


@pytest.mark.parametrize("moves_before", [0, 1])
def test_of_ten_promotions_at_once_one_wins(db: Database, moves_before: int) -> None:
    publish(db, 2)
    for _ in range(moves_before):
        promote(db, "v1")
    outcomes: list[str] = []
    gate = threading.Barrier(10)

    def move() -> None:
        gate.wait(20)
        try:
            with db.write() as session:
                versions.set_live("v2", expected_serial=moves_before, actor="ann", now=START, session=session)
            outcomes.append("moved")
        except StudioError as error:
            outcomes.append(type(error).__name__)

    threads = [threading.Thread(target=move) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["Conflict"] * 9 + ["moved"]


def test_what_was_never_published_cannot_go_live(db: Database) -> None:
    with pytest.raises(NotFound), db.write() as session:
        versions.set_live("v9", expected_serial=0, actor="ann", now=START, session=session)


def test_rolling_back_again_and_again_walks_to_the_start(db: Database) -> None:
    publish(db, 3)
    for name in ("v1", "v2", "v3"):
        promote(db, name)
    walked = []
    found = before(db, "v3")
    while found is not None:
        walked.append(found)
        promote(db, found)
        found = before(db, found)
    assert walked == ["v2", "v1"]


def test_an_older_version_promoted_later_rolls_back_to_what_was_live_before_it(db: Database) -> None:
    publish(db, 2)
    promote(db, "v2")
    promote(db, "v1")
    assert (before(db, "v1"), before(db, "v2"), before(db, "base")) == ("v2", None, None)
