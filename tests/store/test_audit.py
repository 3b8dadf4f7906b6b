"""Audit events and studio settings."""

from dpo_studio.store import audit, studio_settings
from dpo_studio.store.database import Database
from tests.store.makers import at


def test_events_are_listed_newest_first(db: Database) -> None:
    with db.write() as session:
        for second, action in enumerate(("promote", "rollback", "export")):
            audit.record(
                actor="ann",
                action=action,
                subject="v1",
                details={"n": second},
                now=at(second),
                session=session,
            )
    with db.read() as session:
        events = audit.list_events(limit=2, session=session)
    assert [(event.action, event.details, event.at) for event in events] == [
        ("export", {"n": 2}, at(2)),
        ("rollback", {"n": 1}, at(1)),
    ]


def test_an_event_of_an_act_that_failed_is_not_kept(db: Database) -> None:
    try:
        with db.write() as session:
            audit.record(actor="a", action="b", subject="c", details={}, now=at(0), session=session)
            raise KeyError
    except KeyError:
        pass
    with db.read() as session:
        assert audit.list_events(limit=9, session=session) == []


def test_a_setting_is_replaced_and_may_be_null(db: Database) -> None:
    with db.write() as session:
        studio_settings.put_setting("a", {"x": 1}, session=session)
        studio_settings.put_setting("a", None, session=session)
        studio_settings.put_setting("b", [1, "ü"], session=session)
    with db.read() as session:
        assert studio_settings.get_setting("a", session=session) is None
        assert studio_settings.get_setting("b", session=session) == [1, "ü"]
        assert studio_settings.get_setting("c", session=session) is None
