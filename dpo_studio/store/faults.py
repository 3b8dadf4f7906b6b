"""SQLite's errors as sentences for people.

Only faults of the world are translated (full disk, read-only folder, damaged file, a database that stays
locked). Everything else is a bug of ours and passes unchanged.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dpo_studio.errors import Busy, StorageError, StudioError

_SENTENCES = (
    ("database or disk is full", "The disk is full and nothing was saved; free some space and try again"),
    (
        "disk i/o error",
        "The disk refused to read or write and nothing was saved; check its space and health, then try again",
    ),
    ("readonly", "The storage folder is read-only and nothing was saved; make {folder} writable"),
    ("unable to open database", "The database {path} cannot be opened; check that {folder} is writable"),
    ("malformed", "The database {path} is damaged; stop the studio and restore a backup"),
    ("file is not a database", "{path} is not a studio database; restore a backup or move the file away"),
)
_LOCKED = ("database is locked", "database table is locked", "database is busy")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the world's faults inside the block into StorageError or Busy."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        # Errors of the hooks that prepare a connection come as the driver raised them.
        translated = translate(str(error.orig if isinstance(error, DBAPIError) else error), path)
        if translated is None:
            raise
        raise translated from error
    except PoolTimeout as error:
        raise Busy("The database is busy; please try again") from error


def translate(message: str, path: Path) -> StudioError | None:
    """The error to show for an SQLite message, or None when it is not the world's fault."""
    lowered = message.lower()
    for needle, sentence in _SENTENCES:
        if needle in lowered:
            return StorageError(sentence.format(path=path, folder=path.parent))
    if any(needle in lowered for needle in _LOCKED):
        return Busy("The database is busy; please try again")
    return None
