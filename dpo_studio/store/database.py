"""Database: the one SQLite file that is the truth.

A write is acknowledged only after its COMMIT returned with synchronous=FULL. Writers take the write lock
before they read, so nothing is lost between a read and a write. Refuses to open a file that a newer
studio wrote, that is damaged, or that cannot be written.
"""

import sqlite3
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import Engine
from sqlmodel import Session

from dpo_studio.errors import StorageError
from dpo_studio.store import doctor, migrate
from dpo_studio.store.connections import reader_engine, writer_of
from dpo_studio.store.doctor import DoctorReport
from dpo_studio.store.faults import explained
from dpo_studio.store.journal import JournalChoice, choose_journal


def new_id() -> str:
    """A fresh id: 32 hexadecimal characters, 122 of its bits random."""
    return uuid.uuid4().hex


class Database:
    """Opens once, then hands out sessions to any thread.

    A session belongs to the `with` block that opened it. Nesting a write in a read of the same thread
    would wait for itself, so that is an assertion.
    """

    def __init__(
        self, path: Path, *, sqlite_version: tuple[int, int, int] = sqlite3.sqlite_version_info
    ) -> None:
        self.path = path
        self._journal = choose_journal(sqlite_version)
        self._reader: Engine | None = None
        self._mine = threading.local()

    @property
    def journal(self) -> JournalChoice:
        """The journal mode in use, and why."""
        return self._journal

    @property
    def journal_mode(self) -> str:
        return self._journal.mode

    def open(self) -> None:
        """Create or migrate the file (a backup is made first). Raises StorageError."""
        with explained(self.path):
            migrate.prepare(self.path, self._journal)
            self._reader = reader_engine(self.path, self._journal.mode)
            # What cannot be set up must fail here and not at the first vote.
            self._reader.connect().close()

    def close(self) -> None:
        """Let go of the file. Opening again is allowed."""
        if self._reader is not None:
            self._reader.dispose()
            self._reader = None

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment. Keep it short: a long reader delays every commit."""
        with self._session(self._engine()) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session whose changes are durable when the block ends, or absent when it raises.

        Raises StorageError (disk full, read-only) and Busy; nothing was saved then.
        """
        with self._session(writer_of(self._engine())) as session:
            # Take the write lock now: what the block decides before its first query must hold too.
            session.connection()
            yield session
            session.commit()

    def check(self) -> DoctorReport:
        """Examine the file and its disk. Takes seconds on a large database."""
        with explained(self.path), self._engine().connect() as connection:
            return doctor.examine(connection, self.path, self._journal)

    @contextmanager
    def _session(self, engine: Engine) -> Iterator[Session]:
        assert not getattr(self._mine, "is_open", False), "a session is open in this thread already"
        self._mine.is_open = True
        try:
            with explained(self.path), Session(engine, expire_on_commit=False) as session:
                yield session
        finally:
            self._mine.is_open = False

    def _engine(self) -> Engine:
        if self._reader is None:
            raise StorageError(f"The database {self.path} is not open; start the studio first")
        return self._reader
