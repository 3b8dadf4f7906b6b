"""The file: durable settings on every connection, refusals in words, no lost update."""

import os
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from dpo_studio.errors import Busy, StorageError
from dpo_studio.store import studio_settings
from dpo_studio.store.database import Database
from dpo_studio.store.faults import translate
from tests.store.makers import in_child, opened

HERE = sqlite3.sqlite_version_info


def test_every_pooled_connection_is_durable_and_checks_foreign_keys(db: Database) -> None:
    """Several at once, so that the pool makes new ones; then used ones again."""
    seen = []

    def look(barrier: threading.Barrier) -> None:
        for reading in (True, False):
            with db.read() if reading else db.write() as session:
                connection = session.connection()
                seen.append(
                    tuple(
                        connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                        for name in ("synchronous", "journal_mode", "foreign_keys", "busy_timeout")
                    )
                )
                if reading:
                    barrier.wait(10)

    barrier = threading.Barrier(4)
    threads = [threading.Thread(target=look, args=(barrier,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {(2, db.journal_mode, 1, 15_000)}
    assert len(seen) == 8


def test_a_block_that_raises_changes_nothing(db: Database) -> None:
    with pytest.raises(RuntimeError), db.write() as session:
        studio_settings.put_setting("a", 1, session=session)
        raise RuntimeError
    with db.read() as session:
        assert studio_settings.get_setting("a", session=session) is None


@pytest.mark.integration
def test_no_update_is_lost_between_a_read_and_a_write(db: Database) -> None:
    """4 threads x 25 read-modify-writes end at exactly 100."""

    def count() -> None:
        for _ in range(25):
            with db.write() as session:
                value = studio_settings.get_setting("n", session=session) or 0
                studio_settings.put_setting("n", value + 1, session=session)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        assert studio_settings.get_setting("n", session=session) == 100


def test_a_plain_begin_would_lose_or_refuse_updates(tmp_path: Path) -> None:
    """Negative control: the driver's own transactions, two interleaved read-modify-writes."""
    path = tmp_path / "legacy.db"
    with closing(sqlite3.connect(path)) as first, closing(sqlite3.connect(path)) as second:
        first.execute("CREATE TABLE t (n)")
        first.execute("INSERT INTO t VALUES (0)")
        first.commit()
        (read_by_first,) = first.execute("SELECT n FROM t").fetchone()
        (read_by_second,) = second.execute("SELECT n FROM t").fetchone()
        first.execute("UPDATE t SET n = ?", (read_by_first + 1,))
        first.commit()
        second.execute("UPDATE t SET n = ?", (read_by_second + 1,))
        second.commit()
        assert first.execute("SELECT n FROM t").fetchone() == (1,)


def test_a_session_inside_a_session_of_the_same_thread_is_a_bug(db: Database) -> None:
    with db.read(), pytest.raises(AssertionError, match="open in this thread"), db.write():
        pass
    with db.write():
        pass


def test_a_closed_database_says_so_and_can_be_opened_again(db: Database) -> None:
    db.close()
    with pytest.raises(StorageError, match="not open"), db.read():
        pass
    db.open()
    with db.read() as session:
        assert session.connection().exec_driver_sql("SELECT 1").scalar_one() == 1


def test_what_was_written_is_there_after_opening_again(db: Database) -> None:
    with db.write() as session:
        studio_settings.put_setting("a", {"b": [1]}, session=session)
    again = opened(db.path)
    with again.read() as session:
        assert studio_settings.get_setting("a", session=session) == {"b": [1]}
    again.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "studio.db"
    path.write_bytes(b"no database at all " * 100)
    with pytest.raises(StorageError, match="not a studio database"):
        opened(path)
    assert path.read_bytes().startswith(b"no database")


def test_a_foreign_sqlite_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "studio.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (name)")
    with pytest.raises(StorageError, match="not a studio database"):
        opened(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("songs",)]


def test_a_damaged_page_is_a_sentence(db: Database) -> None:
    db.close()
    size = db.path.stat().st_size
    with db.path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(StorageError, match=r"damaged|not a studio database"):
        db.open()
        with db.write() as session:
            studio_settings.put_setting("a", 1, session=session)


def test_a_storage_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "storage").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        opened(tmp_path / "storage" / "studio.db")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to give up rights")
def test_a_read_only_folder_is_refused(db: Database) -> None:
    """In a child that is nobody, over a folder of root's."""
    db.close()
    for folder in (db.path.parent, *db.path.parents):
        if folder.stat().st_uid == 0 and folder.is_relative_to("/tmp"):
            folder.chmod(0o755)

    def work(pipe: int) -> None:
        os.setuid(65534)
        try:
            opened(db.path)
        except StorageError as error:
            os.write(pipe, str(error).encode())

    pid, pipe = in_child(work)
    said = os.read(pipe, 1000).decode()
    os.waitpid(pid, 0)
    os.close(pipe)
    assert "cannot be written" in said


def test_a_live_wal_file_is_never_flipped(tmp_path: Path) -> None:
    path = tmp_path / "studio.db"
    opened(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        assert other.execute("PRAGMA journal_mode = wal").fetchone() == ("wal",)
        other.execute("INSERT INTO studio_setting VALUES ('kept', '1')")
        with pytest.raises(StorageError, match="open in another program"):
            Database(path, sqlite_version=(3, 40, 1)).open()
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_wal_file_that_nobody_holds_is_settled_without_loss(tmp_path: Path) -> None:
    """What a studio on a fixed SQLite left behind, even without a clean end."""
    path = tmp_path / "studio.db"
    opened(path).close()

    def work(pipe: int) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("PRAGMA journal_mode = wal")
        other.execute("INSERT INTO studio_setting VALUES ('kept', '1')")
        os.write(pipe, b"x")
        os._exit(0)

    pid, pipe = in_child(work)
    assert os.read(pipe, 1) == b"x"
    os.waitpid(pid, 0)
    os.close(pipe)
    assert path.with_name("studio.db-wal").stat().st_size > 0
    database = Database(path, sqlite_version=(3, 40, 1))
    database.open()
    with database.read() as session:
        assert studio_settings.get_setting("kept", session=session) == 1
        mode = session.connection().exec_driver_sql("PRAGMA journal_mode").scalar_one()
    database.close()
    assert mode == "truncate"


def test_a_fixed_sqlite_opens_in_wal(tmp_path: Path) -> None:
    database = Database(tmp_path / "studio.db", sqlite_version=(3, 51, 3))
    database.open()
    with database.write() as session:
        studio_settings.put_setting("a", 1, session=session)
        assert session.connection().exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert session.connection().exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
    database.close()


def test_our_own_bugs_are_not_dressed_up_as_faults_of_the_world(db: Database) -> None:
    with pytest.raises(sa.exc.OperationalError), db.read() as session:
        session.connection().exec_driver_sql("SELECT nothing FROM nowhere")


@pytest.mark.parametrize(
    ("message", "kind", "word"),
    [
        ("database or disk is full", StorageError, "disk is full"),
        ("disk I/O error", StorageError, "refused"),
        ("attempt to write a readonly database", StorageError, "read-only"),
        ("unable to open database file", StorageError, "cannot be opened"),
        ("database disk image is malformed", StorageError, "damaged"),
        ("database is locked", Busy, "try again"),
    ],
)
def test_faults_of_the_world_are_sentences(message: str, kind: type[Exception], word: str) -> None:
    error = translate(message, Path("/data/studio.db"))
    assert isinstance(error, kind)
    assert word in str(error)


def test_two_databases_of_one_process_wait_for_each_other(db: Database) -> None:
    """Writers queue instead of failing: both see the other's commit."""
    other = opened(db.path)
    order = []

    def slow() -> None:
        with other.write() as session:
            started.set()
            studio_settings.put_setting("n", 1, session=session)
            order.append("slow")

    started = threading.Event()
    thread = threading.Thread(target=slow)
    thread.start()
    assert started.wait(5)
    with db.write() as session:
        order.append("second")
        assert studio_settings.get_setting("n", session=session) == 1
    thread.join()
    other.close()
    assert order == ["slow", "second"]
