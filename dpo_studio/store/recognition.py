"""Which rankings in a file this storage holds already: its own exports above all.

A row that names its pair is known when the comparison or ranking of that name is here and the row's words
are its words. What became of the votes since does not matter: what was withdrawn or excluded must not come
back through a file. A row without a name of ours (OpenAI's format has no room for one, another studio gives
it another) is known when trainable pairs say the same.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import combinations

import sqlalchemy as sa
from sqlalchemy.orm import aliased
from sqlmodel import Session, col, select

from dpo_studio.domain.chat import Message, clean_text
from dpo_studio.store.pairs import NewImport, ReadsDatabase, iterate_pairs, paged
from dpo_studio.store.tables import Comparison, ImportedPair, Response, Vote
from dpo_studio.store.texts import content_id, messages_to_text

Texts = set[str]
Sources = dict[str, tuple[str, Texts]]
"""By the id of a comparison or import: its messages as text, and all answers that belong to it."""


def already_here(imports: Sequence[NewImport], database: ReadsDatabase) -> list[bool]:
    """For each ranking, whether importing it would add nothing. Reads in many short transactions."""
    sources = _sources(sorted({_source_id(item) for item in imports} - {""}), database)
    conversations = {messages_to_text(item.messages) for item in imports}
    said = {
        _content(pair.messages, pair.chosen.text, pair.rejected.text)
        for pair in iterate_pairs(database, about=conversations)
    }
    return [_is_from(item, sources) or _is_said(item, said) for item in imports]


def _is_from(item: NewImport, sources: Sources) -> bool:
    messages, texts = sources.get(_source_id(item), ("", set()))
    return messages == messages_to_text(item.messages) and texts.issuperset(item.responses)


def _is_said(item: NewImport, said: set[str]) -> bool:
    return all(_content(item.messages, *pair) in said for pair in combinations(item.responses, 2))


def _source_id(item: NewImport) -> str:
    return item.pair_id.rpartition(":")[0]


def _content(messages: Sequence[Message], chosen: str, rejected: str) -> str:
    return content_id([messages_to_text(messages), _as_imported(chosen), _as_imported(rejected)])


def _as_imported(text: str) -> str:
    """An answer as it looks after a way through a file."""
    return clean_text(text).strip()


def _sources(ids: Sequence[str], database: ReadsDatabase) -> Sources:
    found: Sources = {}
    for page in paged(ids):
        with database.read() as session:
            for source_id, messages, texts in (*_comparisons(page, session), *_imports(page, session)):
                found.setdefault(source_id, (messages, set()))[1].update(map(_as_imported, texts))
    return found


def _comparisons(ids: Sequence[str], session: Session) -> Iterator[tuple[str, str, Sequence[str]]]:
    a, b = aliased(Response), aliased(Response)
    rows = session.connection().execute(
        sa.select(col(Comparison.id), col(Comparison.messages_json), col(a.text), col(b.text))
        .join(a, col(a.id) == col(Comparison.a_response_id))
        .join(b, col(b.id) == col(Comparison.b_response_id))
        .where(col(Comparison.id).in_(ids))
    )
    edits: dict[str, list[str]] = {}
    edited = col(Vote.comparison_id).in_(ids), col(Vote.edited).is_not(None)
    for comparison_id, text in session.exec(select(Vote.comparison_id, Vote.edited).where(*edited)):
        edits.setdefault(comparison_id, []).append(text or "")
    for comparison_id, messages, left, right in rows:
        yield comparison_id, messages, (left, right, *edits.get(comparison_id, ()))


def _imports(ids: Sequence[str], session: Session) -> Iterator[tuple[str, str, Sequence[str]]]:
    for row in session.exec(select(ImportedPair).where(col(ImportedPair.id).in_(ids))):
        yield row.id, row.messages_json, json.loads(row.responses_json)
