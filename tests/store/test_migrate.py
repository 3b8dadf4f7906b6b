"""Migrations lose nothing: whole or not at all, backed up, one process at a time."""

import fcntl
import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import RoundStatus, TrainingFacts
from dpo_studio.errors import StorageError
from dpo_studio.store import migrate, rounds, votes
from dpo_studio.store.database import Database
from dpo_studio.store.journal import choose_journal
from dpo_studio.store.tables import Record
from tests.store.makers import START, add_judged, in_child, opened

JOURNAL = choose_journal(sqlite3.sqlite_version_info)
HEAD = str(migrate.head_revision())
NEXT = "9999"
REVISION = """
import sqlalchemy as sa
from alembic import op
revision = "{revision}"
down_revision = "{before}"
branch_labels = None
depends_on = None
def upgrade():
{body}
"""
ROUND_OF_0001 = """
INSERT INTO round (number, status, trigger, reason, settings_json, dataset_sha256, num_pairs, num_train,
    num_heldout, new_pairs, metrics_json, version, created_at)
VALUES (1, 'promoted', 'ann', 'v1 went live', '{"beta":0.3}', 'sha256:1', 9, 8, 1, 9, '{"loss": 0.5}', 'v1',
    '2026-01-01T00:00:00.000000+00:00');
INSERT INTO round_step VALUES (1, 0, '{"phase":"done","step":1,"num_steps":1,"time":1.5,"metrics":{}}');
"""
FACTS = TrainingFacts("Trained in the packed layout.", ("A note.",), 1, 2, 3, 4, 5.5)
REBUILD_PARENT = """
    with op.batch_alter_table("comparison", recreate="always") as batch:
        batch.add_column(sa.Column("colour", sa.String(), nullable=True))
"""


def scripts_with(folder: Path, body: str) -> Path:
    """The real migrations and one more revision."""
    shutil.copytree(migrate.SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text = REVISION.format(revision=NEXT, before=HEAD, body=body.rstrip())
    (folder / "versions" / f"r{NEXT}_next.py").write_text(text)
    return folder


def scripts_until(folder: Path, last: str) -> Path:
    """The real migrations up to revision `last`, as an older studio has them."""
    shutil.copytree(migrate.SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in (folder / "versions").glob("r*.py"):
        if script.name[1:5] > last:
            script.unlink()
    return folder


def with_votes(db: Database, count: int = 5) -> None:
    with db.write() as session:
        for _ in range(count):
            add_judged(session, Choice.A)
    db.close()


def rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the tables that hold what people did."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall())
            for name in ("vote", "response")
        }


def migrate_in_child(path: Path, scripts: Path, _pipe: int) -> None:
    migrate.prepare(path, JOURNAL, scripts=scripts)


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        (found,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(found)


def test_the_migrations_make_exactly_the_tables_of_the_code(db: Database) -> None:
    engine = sa.create_engine(f"sqlite:///{db.path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Record.metadata) == []
    engine.dispose()


def test_partial_indexes_of_the_migrations_are_those_of_the_code(db: Database, tmp_path: Path) -> None:
    """Alembic does not compare the conditions of indexes; their SQL is compared here."""
    fresh = sa.create_engine(f"sqlite:///{tmp_path / 'fresh.db'}")
    Record.metadata.create_all(fresh)
    fresh.dispose()
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name"
    with closing(sqlite3.connect(db.path)) as one, closing(sqlite3.connect(tmp_path / "fresh.db")) as two:
        assert one.execute(query).fetchall() == two.execute(query).fetchall()


def test_opening_twice_migrates_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "studio.db"
    opened(path).close()
    opened(path).close()
    assert revision(path) == HEAD == "0002"
    assert list(path.parent.glob("*before-migrating*")) == []


def test_rebuilding_a_parent_table_keeps_every_vote(db: Database, tmp_path: Path) -> None:
    """With foreign keys on, this very rebuild deletes children silently."""
    with_votes(db)
    before = rows(db.path)
    migrate.prepare(db.path, JOURNAL, scripts=scripts_with(tmp_path / "scripts", REBUILD_PARENT))
    assert revision(db.path) == NEXT
    assert rows(db.path) == before
    assert len(before["vote"]) == 5


def test_an_old_database_is_backed_up_before_it_is_migrated(db: Database, tmp_path: Path) -> None:
    with_votes(db)
    migrate.prepare(db.path, JOURNAL, scripts=scripts_with(tmp_path / "scripts", REBUILD_PARENT))
    backup = migrate.backup_path(db.path, HEAD)
    assert rows(backup) == rows(db.path)
    assert revision(backup) == HEAD
    restored = opened(backup)
    with restored.read() as session:
        assert votes.counts("ann", since=START, session=session).total == 5
    restored.close()


def test_rounds_of_the_schema_before_keep_everything_and_know_nothing_of_their_training(
    tmp_path: Path,
) -> None:
    """From 0001, where a round's record said nothing of how it trained."""
    path = tmp_path / "studio.db"
    migrate.prepare(path, JOURNAL, scripts=scripts_until(tmp_path / "scripts", "0001"))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(ROUND_OF_0001)
        before = connection.execute("SELECT * FROM round").fetchall()
    database = opened(path)
    with database.write() as session:
        (found,) = rounds.list_rounds(session=session)
        rounds.record_training(1, FACTS, session=session)
        (changed,) = rounds.list_rounds(session=session)
    database.close()
    assert (found.status, found.metrics, found.version) == (RoundStatus.PROMOTED, {"loss": 0.5}, "v1")
    assert found.training is None
    assert changed == replace(found, training=FACTS)
    with closing(sqlite3.connect(migrate.backup_path(path, "0001"))) as connection:
        assert connection.execute("SELECT * FROM round").fetchall() == before
        assert connection.execute("SELECT count(*) FROM round_step").fetchone() == (1,)


def test_a_failed_migration_leaves_the_old_schema(db: Database, tmp_path: Path) -> None:
    with_votes(db)
    before = rows(db.path)
    body = REBUILD_PARENT + '    raise RuntimeError("half way")\n'
    with pytest.raises(RuntimeError, match="half way"):
        migrate.prepare(db.path, JOURNAL, scripts=scripts_with(tmp_path / "scripts", body))
    assert revision(db.path) == HEAD
    assert rows(db.path) == before
    opened(db.path).close()


def test_a_migration_that_loses_a_row_is_taken_back(db: Database, tmp_path: Path) -> None:
    with_votes(db)
    body = '    op.execute("DELETE FROM vote WHERE rowid = 1")'
    with pytest.raises(StorageError, match="without losing rows"):
        migrate.prepare(db.path, JOURNAL, scripts=scripts_with(tmp_path / "scripts", body))
    assert revision(db.path) == HEAD
    assert len(rows(db.path)["vote"]) == 5


def test_a_migration_that_breaks_a_reference_is_taken_back(db: Database, tmp_path: Path) -> None:
    with_votes(db)
    body = "    op.execute(\"UPDATE vote SET comparison_id = 'gone' WHERE rowid = 1\")"
    with pytest.raises(StorageError, match="without losing rows"):
        migrate.prepare(db.path, JOURNAL, scripts=scripts_with(tmp_path / "scripts", body))
    assert revision(db.path) == HEAD


def test_a_database_of_a_newer_studio_is_refused(db: Database) -> None:
    db.close()
    with closing(sqlite3.connect(db.path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0999'")
        connection.commit()
    with pytest.raises(StorageError, match=r"newer version of DPO Studio \(schema 0999"):
        db.open()


def test_two_processes_that_create_the_same_database_both_succeed(tmp_path: Path) -> None:
    path = tmp_path / "studio.db"

    def work(_pipe: int) -> None:
        opened(path).close()

    children = [in_child(work) for _ in range(4)]
    codes = [os.waitpid(pid, 0)[1] for pid, _ in children]
    for _, pipe in children:
        os.close(pipe)
    assert codes == [0, 0, 0, 0]
    assert revision(path) == HEAD


def test_a_second_migrator_waits_for_the_first(tmp_path: Path) -> None:
    """While somebody holds the lock beside the database, nobody else touches the file."""
    path = tmp_path / "studio.db"
    with path.with_name("studio.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pid, pipe = in_child(lambda _pipe: opened(path).close())
        time.sleep(0.4)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        assert not path.exists()
        # Closing would not do: the child inherited this very lock.
        fcntl.flock(lock, fcntl.LOCK_UN)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(pipe)
    assert revision(path) == HEAD


@pytest.mark.integration
def test_a_kill_during_migration_leaves_the_old_or_the_new_schema(db: Database, tmp_path: Path) -> None:
    with_votes(db, 20)
    before = rows(db.path)
    scripts = scripts_with(tmp_path / "scripts", REBUILD_PARENT)
    rng = random.Random(1)
    found = set()
    for number in range(12):
        copy = tmp_path / f"copy-{number}.db"
        shutil.copyfile(db.path, copy)
        pid, pipe = in_child(partial(migrate_in_child, copy, scripts))
        time.sleep(rng.uniform(0.0, 0.12))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(pipe)
        assert rows(copy) == before
        found.add(revision(copy))
        migrate.prepare(copy, JOURNAL, scripts=scripts)
        assert (rows(copy), revision(copy)) == (before, NEXT)
    assert found <= {HEAD, NEXT}
