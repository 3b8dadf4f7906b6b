"""A file of measured rows: one JSON line each, appended as soon as it is measured.

A killed run loses nothing; a run with the same file skips what is there.
"""

from collections.abc import Hashable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.files import append_jsonl, read_jsonl


class Keyed(Protocol):
    """A dataclass whose `key` says what was measured; two rows with the same key say the same thing."""

    @property
    def key(self) -> Hashable: ...


R = TypeVar("R", bound=Keyed)


class KeyedRows(Generic[R]):
    """The rows of one file, in order; None keeps them in memory only."""

    def __init__(self, row_type: type[R], path: Path | None) -> None:
        self._path = path
        known = read_jsonl(path) if path is not None and path.exists() else ()
        self.rows = [from_json(row_type, line) for line in known]
        self._by_key = {row.key: row for row in self.rows}

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def get(self, key: Hashable) -> R | None:
        return self._by_key.get(key)

    def add(self, row: R) -> None:
        """Append, unless a row with this key is there."""
        if row.key in self._by_key:
            return
        self.rows.append(row)
        self._by_key[row.key] = row
        if self._path is not None:
            append_jsonl(self._path, to_json(row))
