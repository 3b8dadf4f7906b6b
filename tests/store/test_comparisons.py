"""Comparisons: complete, one shown at a time, dropped only when nobody has seen them."""

from datetime import timedelta

import pytest
from sqlalchemy.exc import IntegrityError

from dpo_studio.domain.preference import SampledText
from dpo_studio.errors import NotFound
from dpo_studio.store import comparisons
from dpo_studio.store.database import Database
from tests.store.makers import START, add_comparison, at, cast


def test_a_comparison_comes_back_as_sampled(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session, version="v2", a="left ", b="right\n")
    with db.read() as session:
        record = comparisons.get_comparison(comparison_id, session=session)
    assert record is not None
    assert record.a == SampledText("left ", (7, 8, 2), "v2")
    assert record.b == SampledText("right\n", (7, 8, 2), "v2")
    assert (record.status, record.labeler, record.source) == ("shown", "ann", "queue")
    assert record.shown_at == START and record.shown_at.utcoffset() == timedelta(0)


def test_an_unknown_comparison_is_none(db: Database) -> None:
    with db.read() as session:
        assert comparisons.get_comparison("0" * 32, session=session) is None


def test_an_open_comparison_survives_a_restart(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session)
    db.close()
    db.open()
    with db.read() as session:
        shown = comparisons.open_for("ann", session=session)
        assert comparisons.open_for("bob", session=session) is None
    assert shown is not None and shown.id == comparison_id


def test_the_one_that_waits_longest_is_shown_first(db: Database) -> None:
    with db.write() as session:
        later = add_comparison(session, status="ready", now=at(2))
        sooner = add_comparison(session, status="ready", now=at(1))
        add_comparison(session, status="ready", labeler="bob")
        assert comparisons.count_ready("ann", session=session) == 2
        taken = comparisons.take_ready("ann", now=at(3), session=session)
        assert taken is not None
        assert (taken.id, taken.status, taken.shown_at) == (sooner, "shown", at(3))
        cast(session, sooner)
        last = comparisons.take_ready("ann", now=at(4), session=session)
        assert last is not None and last.id == later
        assert comparisons.take_ready("carl", now=at(5), session=session) is None


def test_showing_one_puts_the_other_back(db: Database) -> None:
    with db.write() as session:
        first = add_comparison(session)
        second = add_comparison(session, status="ready", now=at(1))
        comparisons.mark_shown(second, now=at(2), session=session)
    with db.read() as session:
        shown = comparisons.open_for("ann", session=session)
        waiting = comparisons.ready_for("ann", session=session)
    assert shown is not None and waiting is not None
    assert (shown.id, waiting.id) == (second, first)


def test_a_swap_drops_only_what_nobody_has_seen(db: Database) -> None:
    with db.write() as session:
        seen = add_comparison(session, version="base")
        comparisons.put_back_shown("ann", session=session)
        unseen = add_comparison(session, version="base", status="ready")
        fresh = add_comparison(session, version="v1", status="ready")
        assert comparisons.drop_superseded("v1", session=session) == 1
        records = [comparisons.get_comparison(i, session=session) for i in (seen, unseen, fresh)]
    assert [record.status for record in records if record] == ["ready", "dropped", "ready"]


def test_a_dropped_comparison_is_never_shown(db: Database) -> None:
    with db.write() as session:
        comparison_id = add_comparison(session, status="ready")
        comparisons.drop_superseded("v1", session=session)
        with pytest.raises(NotFound):
            comparisons.mark_shown(comparison_id, now=at(1), session=session)
        assert comparisons.take_ready("ann", now=at(1), session=session) is None


def test_a_prompt_that_does_not_exist_is_refused_by_the_database(db: Database) -> None:
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), db.write() as session:
        add_comparison(session, prompt_id="0" * 32)
