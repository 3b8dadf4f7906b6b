"""Bring a database file to the schema of this code, or leave it exactly as it was.

One process at a time (a file lock beside the database), foreign keys off, one transaction of our own, a
backup first, row counts compared before the commit. Nothing is read from alembic.ini and no logging is
set up.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from dpo_studio.errors import StorageError
from dpo_studio.files import sync_folder
from dpo_studio.store.connections import BUSY_TIMEOUT_S, migration_engine
from dpo_studio.store.faults import translate
from dpo_studio.store.journal import JournalChoice

SCRIPTS = Path(__file__).parent / "migrations"


def prepare(path: Path, journal: JournalChoice, *, scripts: Path = SCRIPTS) -> None:
    """Create or migrate `path`. Two processes at once: the second waits and finds nothing to do.

    Raises StorageError; the file is then as it was.
    """
    with _only_me(path):
        had_schema = _settle_journal(path, journal)
        config = _config(scripts)
        script = ScriptDirectory.from_config(config)
        engine = migration_engine(path, journal.mode)
        try:
            with engine.connect() as connection:
                current = MigrationContext.configure(connection).get_current_revision()
            _refuse_foreign(path, current, script, had_schema=had_schema)
            if current == script.get_current_head():
                return
            if current is not None:
                _back_up(path, current)
            with engine.begin() as connection:
                _upgrade(connection, config)
        finally:
            engine.dispose()


def head_revision(scripts: Path = SCRIPTS) -> str | None:
    """The schema this code writes."""
    return ScriptDirectory.from_config(_config(scripts)).get_current_head()


def backup_path(path: Path, revision: str) -> Path:
    """Where the copy made before migrating away from `revision` lies."""
    return path.with_name(f"{path.stem}-before-migrating-{revision}{path.suffix}")


def _config(scripts: Path) -> Config:
    config = Config()
    # A percent sign in the path would be read as interpolation.
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _only_me(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f"{path.name}.lock").open("w")
    except OSError as error:
        raise StorageError(
            f"The storage folder {path.parent} cannot be written ({error.strerror}); "
            "choose another with --storage or fix its permissions"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _settle_journal(path: Path, journal: JournalChoice) -> bool:
    """Put the file into the wanted mode while nobody else has it open; returns whether it has tables.

    SQLite itself refuses to leave WAL while another connection is open; we never force it, we say so.
    """
    try:
        with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
            (found,) = connection.execute("PRAGMA journal_mode").fetchone()
            # A rollback-journal file may stay as it is when others hold it open; leaving WAL may not wait.
            connection.execute("PRAGMA busy_timeout = 2000")
            if (found == "wal") != (journal.mode == "wal"):
                (found,) = connection.execute(f"PRAGMA journal_mode = {journal.mode}").fetchone()
            if (found == "wal") != (journal.mode == "wal"):
                raise StorageError(_wrong_mode(path, found, journal))
            tables = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' LIMIT 1")
            return tables.fetchone() is not None
    except sqlite3.DatabaseError as error:
        if "locked" in str(error):
            raise StorageError(_wrong_mode(path, "another", journal)) from error
        translated = translate(str(error), path)
        if translated is None:
            raise
        raise translated from error


def _wrong_mode(path: Path, found: str, journal: JournalChoice) -> str:
    return (
        f"{path} is open in another program with journal mode {found}; {journal.reason}: "
        "close the other program and start again"
    )


def _refuse_foreign(path: Path, current: str | None, script: ScriptDirectory, *, had_schema: bool) -> None:
    known = {revision.revision for revision in script.walk_revisions()}
    if current is None and had_schema:
        raise StorageError(
            f"{path} is an SQLite file but not a studio database; move it away or choose another --storage"
        )
    if current is not None and current not in known:
        raise StorageError(
            f"{path} was written by a newer version of DPO Studio (schema {current}, this one knows up to "
            f"{script.get_current_head()}); upgrade DPO Studio or choose another --storage"
        )


def _back_up(path: Path, revision: str) -> None:
    """VACUUM INTO: consistent even while others write, which a file copy is not."""
    final = backup_path(path, revision)
    temporary = final.with_name(f".tmp-{final.name}")
    temporary.unlink(missing_ok=True)
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)) as connection:
        connection.execute("VACUUM INTO ?", (str(temporary),))
    with temporary.open("rb") as copy:
        os.fsync(copy.fileno())
    temporary.replace(final)
    sync_folder(final.parent)


def _upgrade(connection: Connection, config: Config) -> None:
    before = _row_counts(connection)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    after = _row_counts(connection)
    lost = {name: (count, after[name]) for name, count in before.items() if after.get(name, count) != count}
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if lost or broken:
        raise StorageError(
            "The database could not be brought to the new schema without losing rows "
            f"({lost or broken[:3]}); nothing was changed, please report this"
        )


def _row_counts(connection: Connection) -> dict[str, int]:
    names = [name for name in sa.inspect(connection).get_table_names() if name != "alembic_version"]
    return {name: connection.exec_driver_sql(f'SELECT count(*) FROM "{name}"').scalar_one() for name in names}
