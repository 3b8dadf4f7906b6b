"""Prompts waiting for answers. The same conversation exists once; the least used one comes next."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlmodel import Session, col, select

from dpo_studio.domain.chat import Message
from dpo_studio.store.tables import Comparison, Prompt
from dpo_studio.store.texts import content_id, messages_from_text, messages_to_text


@dataclass(frozen=True, slots=True)
class PromptRecord:
    """A stored prompt."""

    id: str
    messages: tuple[Message, ...]
    source: str
    num_comparisons: int


def add_prompts(prompts: Iterable[Sequence[Message]], *, source: str, now: datetime, session: Session) -> int:
    """Append prompts in order; known ones are skipped. Returns how many are new."""
    last = session.exec(select(sa.func.max(Prompt.position))).one()
    before = count_prompts(session=session)
    rows = []
    for position, messages in enumerate(prompts, start=0 if last is None else last + 1):
        text = messages_to_text(messages)
        rows.append(
            {
                "id": content_id(text),
                "messages_json": text,
                "source": source,
                "position": position,
                "num_comparisons": 0,
                "created_at": now,
            }
        )
    if rows:
        session.connection().execute(sa.insert(Prompt).prefix_with("OR IGNORE"), rows)
    return count_prompts(session=session) - before


def next_prompt(labeler: str, *, session: Session) -> PromptRecord | None:
    """The least used prompt that `labeler` has had least often, oldest first; None when there are none."""
    theirs = (
        sa.select(sa.literal(1))
        .where(col(Comparison.prompt_id) == col(Prompt.id), col(Comparison.labeler) == labeler)
        .where(col(Comparison.status) != "dropped")
        .exists()
    )
    order = (col(Prompt.num_comparisons), col(Prompt.position))
    row = session.exec(select(Prompt).where(~theirs).order_by(*order).limit(1)).first()
    if row is None:
        row = session.exec(select(Prompt).order_by(*order).limit(1)).first()
    return None if row is None else _record(row)


def count_prompts(*, session: Session) -> int:
    return session.exec(select(sa.func.count()).select_from(Prompt)).one()


def _record(row: Prompt) -> PromptRecord:
    return PromptRecord(row.id, messages_from_text(row.messages_json), row.source, row.num_comparisons)
