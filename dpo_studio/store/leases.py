"""Leases with a fencing token: who may do a thing, until when.

A lease expires by itself; whoever slept past its end finds that its token is no longer the newest, in the
same transaction in which it wanted to write.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlmodel import Session, col

from dpo_studio.errors import Conflict
from dpo_studio.store.tables import Lease


@dataclass(frozen=True, slots=True)
class LeaseHold:
    """Proof of having taken a lease; worth something only as long as `require` accepts it."""

    name: str
    owner: str
    token: int


def acquire(name: str, owner: str, *, ttl_s: float, now: datetime, session: Session) -> LeaseHold | None:
    """Take a lease that is free or expired; None while somebody (even `owner`) holds it."""
    expires = now + timedelta(seconds=ttl_s)
    free = sa.and_(col(Lease.name) == name, col(Lease.expires_at) <= now)
    taken = session.exec(
        sa.update(Lease).where(free).values(owner=owner, token=col(Lease.token) + 1, expires_at=expires)
    )
    if taken.rowcount == 0:
        row = {"name": name, "owner": owner, "token": 1, "expires_at": expires}
        made = session.connection().execute(sa.insert(Lease).prefix_with("OR IGNORE"), [row])
        if made.rowcount == 0:
            return None
    token = session.connection().execute(sa.select(col(Lease.token)).where(col(Lease.name) == name))
    return LeaseHold(name, owner, token.scalar_one())


def renew(hold: LeaseHold, *, ttl_s: float, now: datetime, session: Session) -> bool:
    """Extend a lease that is still ours; False when it is lost for good."""
    expires = now + timedelta(seconds=ttl_s)
    return session.exec(sa.update(Lease).where(_ours(hold, now)).values(expires_at=expires)).rowcount == 1


def release(hold: LeaseHold, *, now: datetime, session: Session) -> None:
    """Give a lease back early. The token stays, so that the next holder's is greater."""
    session.exec(sa.update(Lease).where(_ours(hold, now)).values(expires_at=now))


def is_held(hold: LeaseHold, *, now: datetime, session: Session) -> bool:
    """Whether the lease is still ours at `now`."""
    query = sa.select(sa.func.count()).select_from(Lease).where(_ours(hold, now))
    return session.connection().execute(query).scalar_one() == 1


def require(hold: LeaseHold, *, now: datetime, session: Session) -> None:
    """Raise Conflict unless the lease is ours: call it in the transaction that writes."""
    if not is_held(hold, now=now, session=session):
        raise Conflict(f"The lease {hold.name!r} was lost to another process; this result is not used")


def _ours(hold: LeaseHold, now: datetime) -> sa.ColumnElement[bool]:
    return sa.and_(
        col(Lease.name) == hold.name,
        col(Lease.owner) == hold.owner,
        col(Lease.token) == hold.token,
        col(Lease.expires_at) > now,
    )
