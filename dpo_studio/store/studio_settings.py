"""Settings that people change while the studio runs, as JSON values by key."""

import json
from datetime import datetime
from typing import Any

from sqlmodel import Session

from dpo_studio.files import canonical_json
from dpo_studio.store import audit
from dpo_studio.store.tables import StudioSetting


def get_setting(key: str, *, session: Session) -> Any | None:
    """The stored value, or None."""
    row = session.get(StudioSetting, key)
    return None if row is None else json.loads(row.value_json)


def put_setting(key: str, value: Any, *, session: Session) -> None:
    """Store or replace a value."""
    session.merge(StudioSetting(key=key, value_json=canonical_json(value)))


def change_setting(key: str, value: Any, *, actor: str, now: datetime, session: Session) -> None:
    """Store or replace a value, and say in the audit log who did."""
    put_setting(key, value, session=session)
    audit.record(
        actor=actor, action="settings", subject=key, details={"value": value}, now=now, session=session
    )
