"""DataService: prompts and preferences in, preferences out.

An import is all-or-nothing and names the bad line. Nothing is fetched: lines come from the caller, and
addresses inside them are text. An export sees the votes of one moment and holds no transaction while its
reader is slow.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from dpo_studio.errors import BadInput
from dpo_studio.services.pair_exports import encode
from dpo_studio.services.pair_formats import parse_preference, parse_prompt
from dpo_studio.store import pairs, prompts
from dpo_studio.store.database import Database
from dpo_studio.store.recognition import already_here

MAX_LINE_CHARS = 1_000_000
MAX_ROWS = 500_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImportResult:
    """What became of the lines. Blank lines count nowhere."""

    new: int
    duplicates: int
    """Already here, as a vote or as an import, or more than once in the file."""
    unusable: int = 0
    """Rows that rank nothing (equal answers, or an empty one preferred); they are left out."""


class DataService:
    """Stateless; each import is one transaction."""

    def __init__(
        self, database: Database, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._database = database
        self._now = now

    def import_prompts(self, lines: Iterable[str], *, source: str = "import") -> ImportResult:
        """Add prompts to the queue: JSON lines with `prompt` or `messages`, or plain text lines.

        Raises BadInput naming the line; then nothing was imported.
        """
        conversations = [prompt for _, prompt in _parsed(lines, _prompt_of_line)]
        with self._database.write() as session:
            new = prompts.add_prompts(conversations, source=source, now=self._now(), session=session)
        return ImportResult(new, len(conversations) - new)

    def import_pairs(self, lines: Iterable[str], *, source: str = "import") -> ImportResult:
        """Add preferences in any shape of `pair_formats`, one JSON value a line.

        What this storage holds already, as a vote or as an import, is counted and not added: its own
        export brings nothing new. Raises BadInput naming the line; then nothing was imported.
        """
        rows = [row for _, row in _parsed(lines, lambda line: parse_preference(_json(line)))]
        imports = [row for row in rows if row is not None]
        known = already_here(imports, self._database)
        unknown = [row for row, is_known in zip(imports, known, strict=True) if not is_known]
        with self._database.write() as session:
            new = pairs.add_imports(unknown, source=source, now=self._now(), session=session)
        return ImportResult(new, len(imports) - new, len(rows) - len(imports))

    def export_pairs(self, format: str = "trl") -> Iterator[bytes]:
        """Every trainable pair as the bytes of a file. Raises BadInput at once for an unknown format."""
        return encode(pairs.iterate_pairs(self._database), format)


def _parsed(lines: Iterable[str], parse: Callable[[str], T]) -> Iterator[tuple[int, T]]:
    """(line number, value) of every line that is not blank."""
    rows = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        rows += 1
        if rows > MAX_ROWS:
            raise BadInput(f"expected at most {MAX_ROWS} rows, found more; split the file")
        try:
            if len(line) > MAX_LINE_CHARS:
                raise BadInput(f"expected at most {MAX_LINE_CHARS} characters, found {len(line)}")
            yield number, parse(line)
        except BadInput as error:
            raise BadInput(f"line {number}: {error}; nothing was imported") from error
    if rows == 0:
        raise BadInput("expected at least one line, found none; nothing was imported")


def _prompt_of_line(line: str) -> Any:
    # A plain line that merely starts like JSON is more likely a broken JSON line than a prompt.
    if not line.lstrip().startswith(("{", '"', "[")):
        return parse_prompt(line.strip())
    try:
        value = _json(line)
    except BadInput as error:
        raise BadInput(f'{error}; plain text that begins with {{, [ or " must be written as JSON') from None
    return parse_prompt(value)


def _json(line: str) -> Any:
    try:
        return json.loads(line, parse_constant=_refuse_constant)
    except RecursionError:
        raise BadInput("expected JSON of reasonable depth, found deeper nesting") from None
    except ValueError as error:
        raise BadInput(f"expected one JSON value, found {_short(line.strip())!r} ({error})") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"the constant {name}")


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."
