"""Nothing acknowledged is lost: not to kill -9, not to a full disk, not to a crowd; every vote is synced."""

import collections
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from dpo_studio.errors import StorageError
from dpo_studio.store.database import Database
from tests.store.makers import add_comparison, add_judged, cast, in_child, opened

pytestmark = pytest.mark.integration
ID_LENGTH = 32
ROOT = Path(__file__).resolve().parents[2]


def votes_in(path: Path) -> set[str]:
    """Ids on disk, after SQLite's own checks found nothing."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return {row[0] for row in connection.execute("SELECT id FROM vote")}


def acknowledge(pipe: int, vote_id: str) -> None:
    os.write(pipe, vote_id.encode())


def read_acknowledged(pipe: int) -> set[str]:
    """Everything that was acknowledged before the writer died; the pipe keeps whole ids."""
    with os.fdopen(pipe, "rb") as file:
        data = file.read().decode()
    return {data[start : start + ID_LENGTH] for start in range(0, len(data) - ID_LENGTH + 1, ID_LENGTH)}


def write_forever(path: Path, pipe: int) -> None:
    database = opened(path)
    while True:
        with database.write() as session:
            receipt = add_judged(session)
        acknowledge(pipe, receipt.vote_id)


def test_no_acknowledged_vote_is_lost_to_kill_9(db: Database) -> None:
    """Two writers at a time, killed at random moments, sixteen times."""
    db.close()
    rng = random.Random(7)
    acknowledged: set[str] = set()
    for _ in range(8):
        writers = [in_child(lambda pipe: write_forever(db.path, pipe)) for _ in range(2)]
        time.sleep(rng.uniform(0.15, 0.4))
        for pid, _ in writers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for _, pipe in writers:
            acknowledged |= read_acknowledged(pipe)
        assert acknowledged <= votes_in(db.path)
    assert len(acknowledged) > 16
    opened(db.path).close()


SYNCED = """
import sys
from pathlib import Path
from tests.store.makers import add_judged, opened
database = opened(Path(sys.argv[1]))
for _ in range(30):
    with database.write() as session:
        add_judged(session)
"""
NOT_SYNCED = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1] + ".control", isolation_level=None)
connection.execute("PRAGMA journal_mode = wal")
connection.execute("PRAGMA synchronous = NORMAL")
connection.execute("CREATE TABLE vote (id)")
for number in range(30):
    connection.execute("INSERT INTO vote VALUES (?)", (number,))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace counts the syncs")
@pytest.mark.parametrize(("program", "is_synced"), [(SYNCED, True), (NOT_SYNCED, False)])
def test_every_vote_is_synced_to_the_disk_before_it_is_acknowledged(
    db: Database, tmp_path: Path, program: str, is_synced: bool
) -> None:
    """The negative control, WAL with synchronous=NORMAL, must fail the same count."""
    db.close()
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "--seccomp-bpf", "-e", "trace=fsync,fdatasync", "-o", str(trace)]
    result = subprocess.run(
        [*strace, sys.executable, "-c", program, str(db.path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "ptrace" in result.stderr.lower() or "not permitted" in result.stderr.lower():
        pytest.skip("this machine does not let strace look")
    assert result.returncode == 0, result.stderr
    syncs = len(re.findall(r"f(?:data)?sync\(", trace.read_text()))
    assert (syncs >= 30) is is_synced, f"{syncs} syncs for 30 votes"


def fill_the_disk(path: Path, pipe: int) -> None:
    """Vote until the file may not grow, see the refusal, vote again when there is room."""
    database = opened(path)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    most = path.stat().st_size + 40_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    refused = ""
    for _ in range(500):
        try:
            with database.write() as session:
                receipt = add_judged(session)
            acknowledge(pipe, receipt.vote_id)
        except StorageError as error:
            refused = str(error)
            break
    assert "nothing was saved" in refused
    with database.read() as session:
        session.connection().exec_driver_sql("SELECT count(*) FROM vote")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    with database.write() as session:
        receipt = add_judged(session)
    acknowledge(pipe, receipt.vote_id)


def test_a_full_disk_is_an_error_and_writing_resumes_without_a_restart(db: Database) -> None:
    db.close()
    pid, pipe = in_child(lambda pipe: fill_the_disk(db.path, pipe))
    acknowledged = read_acknowledged(pipe)
    assert os.waitpid(pid, 0)[1] == 0
    assert len(acknowledged) > 5
    assert votes_in(db.path) == acknowledged


def crowd(path: Path, pipe: int) -> None:
    """Five threads, each ten votes; any error ends the child with code 1."""
    database = opened(path)
    errors: list[Exception] = []

    def label(name: str) -> None:
        try:
            for _ in range(10):
                with database.write() as session:
                    receipt = cast(session, add_comparison(session, labeler=name), labeler=name)
                acknowledge(pipe, receipt.vote_id)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=label, args=(f"{os.getpid()}-{n}",)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_two_processes_of_five_labelers_lose_nothing_and_see_no_lock(db: Database) -> None:
    db.close()
    children = [in_child(lambda pipe: crowd(db.path, pipe)) for _ in range(2)]
    acknowledged = [read_acknowledged(pipe) for _, pipe in children]
    assert [os.waitpid(pid, 0)[1] for pid, _ in children] == [0, 0]
    assert [len(ids) for ids in acknowledged] == [50, 50]
    assert votes_in(db.path) == acknowledged[0] | acknowledged[1]


def test_a_vote_holds_the_write_lock_only_for_a_moment(db: Database) -> None:
    """Median of 20 transactions well under 200 ms: nothing slow happens inside one."""
    began: dict[int, float] = {}
    held: list[float] = []

    def begin(connection: Connection) -> None:
        began[id(connection.connection.dbapi_connection)] = time.perf_counter()

    def commit(connection: Connection) -> None:
        held.append(time.perf_counter() - began[id(connection.connection.dbapi_connection)])

    sa.event.listen(sa.Engine, "begin", begin)
    sa.event.listen(sa.Engine, "commit", commit)
    try:
        for _ in range(20):
            with db.write() as session:
                add_judged(session)
    finally:
        sa.event.remove(sa.Engine, "begin", begin)
        sa.event.remove(sa.Engine, "commit", commit)
    assert len(held) == 20
    assert sorted(held)[10] < 0.2


def test_the_pool_serves_more_threads_than_it_keeps_connections(db: Database) -> None:
    """Forty readers at once: nobody is turned away."""
    answers: collections.Counter[int] = collections.Counter()
    gate = threading.Barrier(40)

    def look() -> None:
        with db.read() as session:
            gate.wait(30)
            answers[session.connection().exec_driver_sql("SELECT 1").scalar_one()] += 1

    threads = [threading.Thread(target=look) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {1: 40}
