"""Who did what, appended in the transaction that did it."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from dpo_studio.files import canonical_json
from dpo_studio.store.tables import AuditEvent


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One event."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    details: Mapping[str, Any]


def record(
    *, actor: str, action: str, subject: str, details: Mapping[str, Any], now: datetime, session: Session
) -> None:
    """Append one event."""
    text = canonical_json(dict(details))
    session.add(AuditEvent(at=now, actor=actor, action=action, subject=subject, details_json=text))


def list_events(*, limit: int, session: Session) -> list[AuditRecord]:
    """The newest events, newest first."""
    rows = session.exec(select(AuditEvent).order_by(col(AuditEvent.id).desc()).limit(limit))
    return [_record(row) for row in rows]


def events_of(actions: Collection[str], *, session: Session) -> list[AuditRecord]:
    """Every event of these kinds, oldest first."""
    wanted = select(AuditEvent).where(col(AuditEvent.action).in_(actions)).order_by(col(AuditEvent.id))
    return [_record(row) for row in session.exec(wanted)]


def _record(row: AuditEvent) -> AuditRecord:
    return AuditRecord(row.id or 0, row.at, row.actor, row.action, row.subject, json.loads(row.details_json))
