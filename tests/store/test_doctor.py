"""The doctor sees what is wrong and says what to do."""

import sqlite3
from contextlib import closing
from pathlib import Path

from dpo_studio.store.database import Database
from dpo_studio.store.doctor import filesystem_of
from dpo_studio.store.migrate import head_revision
from tests.store.makers import add_judged


def test_a_good_database_has_no_problems(db: Database) -> None:
    with db.write() as session:
        add_judged(session)
    report = db.check()
    assert (report.integrity, report.foreign_key_violations, report.schema_revision) == (
        (),
        0,
        head_revision(),
    )
    assert report.journal_mode == db.journal_mode
    assert report.sqlite_version in report.journal_reason
    assert report.synchronous_full and report.foreign_keys
    assert report.free_bytes > 0 and report.size_bytes > 0
    assert [
        problem for problem in report.problems if "disk" not in problem and "storage" not in problem
    ] == []


def test_an_orphan_is_reported(db: Database) -> None:
    with closing(sqlite3.connect(db.path)) as connection:
        connection.execute("INSERT INTO round_step VALUES (99, 0, '{}')")
        connection.commit()
    report = db.check()
    assert report.foreign_key_violations == 1
    assert not report.is_healthy
    assert "foreign_key_check: 1 rows" in report.problems[0]


def test_the_filesystem_is_that_of_the_deepest_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {tmp_path} nfs4 rw 0 0\nnone /proc proc rw 0 0\n")
    assert filesystem_of(tmp_path / "storage", mounts) == "nfs4"
    assert filesystem_of(Path("/etc"), mounts) == "ext4"
    assert filesystem_of(Path("/etc"), tmp_path / "absent") == ""
