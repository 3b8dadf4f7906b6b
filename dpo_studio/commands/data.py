"""Commands that need the database only: imports, exports, the list of versions.

They may run beside a running studio, as the database serialises them. Only imports create a storage; the
others refuse a folder that holds none, so that a mistyped path does not look like an empty studio.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_studio.errors import BadInput, StorageError
from dpo_studio.files import sync_folder, temporary_name
from dpo_studio.services.data import DataService, ImportResult
from dpo_studio.settings import Settings
from dpo_studio.store import rounds, versions
from dpo_studio.store.database import Database


@contextmanager
def opened(settings: Settings, *, must_exist: bool) -> Iterator[Database]:
    """The storage's database. Raises StorageError when there is none and there must be."""
    path = settings.paths.database
    if must_exist and not path.is_file():
        raise StorageError(
            f"storage: expected a studio's folder, found no {path.name} in {path.parent}; "
            "name the right one with --storage DIR"
        )
    database = Database(path)
    database.open()
    try:
        yield database
    finally:
        database.close()


def import_prompts(settings: Settings, file: Path) -> str:
    """Queue the prompts of a JSONL file; says how many were new."""
    with opened(settings, must_exist=False) as database:
        return _outcome(DataService(database).import_prompts(read_lines(file)), "new prompt")


def import_pairs(settings: Settings, file: Path) -> str:
    """Store the preferences of a JSONL file; says how many were new."""
    with opened(settings, must_exist=False) as database:
        return _outcome(DataService(database).import_pairs(read_lines(file)), "new preference")


def export_pairs(settings: Settings, file: Path, format: str) -> str:
    """Write every trainable pair; the file is whole or absent."""
    with opened(settings, must_exist=True) as database:
        size = write_chunks(file, DataService(database).export_pairs(format))
    return f"{file}: {size} bytes"


def list_versions(settings: Settings) -> Iterator[str]:
    """One line a version, base first, the live one marked."""
    with opened(settings, must_exist=True) as database, database.read() as session:
        live = versions.get_live(session=session).version
        accuracies = rounds.heldout_accuracies(session=session)
        pairs = rounds.pair_counts(session=session)
        records = versions.list_versions(session=session)
    yield f"{_mark('base', live)} base"
    for record in records:
        accuracy = accuracies.get(record.round)
        facts = [f"round {record.round}", _count(pairs.get(record.round, 0), "pair")]
        if accuracy is not None:
            facts.append(f"held-out accuracy {accuracy:.2f}")
        facts.append(f"{record.created_at:%Y-%m-%d %H:%M} UTC")
        yield f"{_mark(record.name, live)} {record.name:<6} {' · '.join(facts)}"


def read_lines(file: Path) -> list[str]:
    """Lines of a UTF-8 text file. Raises BadInput naming the file, and the line that is not UTF-8."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadInput(f"file: expected a readable file, found {file} ({error.strerror})") from error
    lines = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        try:
            lines.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadInput(f"{file}, line {number}: expected UTF-8 text, found other bytes") from error
    return lines


def write_chunks(file: Path, chunks: Iterable[bytes]) -> int:
    """Write beside, then rename; returns the size. Raises StorageError when the disk refuses."""
    temporary = temporary_name(file)
    try:
        with temporary.open("wb") as output:
            for chunk in chunks:
                output.write(chunk)
            output.flush()
            os.fsync(output.fileno())
            size = output.tell()
        temporary.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        raise StorageError(
            f"file: expected to write {file}, but the disk refused ({error.strerror})"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return size


def _outcome(result: ImportResult, noun: str) -> str:
    parts = [_count(result.new, noun)]
    if result.duplicates:
        parts.append(f"{result.duplicates} already here")
    if result.unusable:
        parts.append(f"{result.unusable} that rank nothing")
    return ", ".join(parts)


def _mark(name: str, live: str) -> str:
    return "*" if name == live else " "


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
