"""Published versions and the live pointer. Versions never change; the pointer moves by compare-and-set."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, select

from dpo_studio.domain.chat import BASE
from dpo_studio.errors import Conflict, NotFound
from dpo_studio.store.tables import LiveChange, LivePointer, Version

POINTER = 1


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A published version."""

    name: str
    round: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class LiveState:
    """What is live, and how often the pointer has moved."""

    version: str
    serial: int


def add_version(name: str, *, round_number: int, now: datetime, session: Session) -> VersionRecord:
    """Record a published folder. Raises Conflict when the name is taken: names are never reused."""
    row = Version(name=name, round=round_number, created_at=now)
    session.add(row)
    try:
        session.flush()
    except IntegrityError as error:
        raise Conflict(f"The version {name} exists already") from error
    return _record(row)


def get_version(name: str, *, session: Session) -> VersionRecord | None:
    row = session.get(Version, name)
    return None if row is None else _record(row)


def list_versions(*, session: Session) -> list[VersionRecord]:
    """All published versions, by round."""
    rows = session.exec(select(Version).order_by(col(Version.round), col(Version.name)))
    return [_record(row) for row in rows]


def get_live(*, session: Session) -> LiveState:
    """The live version; base until something was promoted."""
    row = session.get(LivePointer, POINTER)
    return LiveState(BASE, 0) if row is None else LiveState(row.version, row.serial)


def set_live(version: str, *, expected_serial: int, actor: str, now: datetime, session: Session) -> LiveState:
    """Move the pointer if nobody moved it since `expected_serial`. Raises Conflict, NotFound."""
    if version != BASE and session.get(Version, version) is None:
        raise NotFound(f"version: expected base or a published version, found {version[:40]!r}")
    serial = expected_serial + 1
    values = {"version": version, "serial": serial, "changed_at": now, "changed_by": actor}
    where = sa.and_(col(LivePointer.id) == POINTER, col(LivePointer.serial) == expected_serial)
    moved = session.exec(sa.update(LivePointer).where(where).values(values)).rowcount
    if moved == 0 and expected_serial == 0:
        row = {"id": POINTER, **values}
        moved = session.connection().execute(sa.insert(LivePointer).prefix_with("OR IGNORE"), [row]).rowcount
    if moved != 1:
        raise Conflict("Another promotion came first; look at what is live now and decide again")
    session.add(LiveChange(version=version, serial=serial, changed_at=now, changed_by=actor))
    session.flush()
    return LiveState(version, serial)


def promoted_before(version: str, *, session: Session) -> str | None:
    """The version that went live for the first time most recently before `version` did; never base.

    Ordered by first promotions, so that rolling back again and again walks to the start and ends.
    """
    firsts = session.exec(
        select(LiveChange.version, sa.func.min(LiveChange.serial)).group_by(col(LiveChange.version))
    ).all()
    order = [name for name, _ in sorted(firsts, key=lambda item: item[1]) if name != BASE]
    if version not in order:
        return None
    place = order.index(version)
    return order[place - 1] if place else None


def _record(row: Version) -> VersionRecord:
    return VersionRecord(row.name, row.round, row.created_at)
