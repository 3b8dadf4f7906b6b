"""kill -9 of worker, engine and studio in mid-round: no acknowledged vote is lost, and the round goes on."""

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dpo_studio.files import read_json, sha256_of_tree, write_json
from dpo_studio.paths import RoundPaths, StoragePaths
from dpo_studio.tastes import get_taste
from tests.integration.studio_process import ROOT, StudioProcess, studio

pytestmark = [pytest.mark.integration, pytest.mark.timeout(420)]
WORKER = "dpo_studio.training.worker"
ENGINE = "dpo_studio.serving.process"
NUM_STEPS = 20
STEP = "from step [1-9][0-9]*"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudioProcess]:
    storage = tmp_path_factory.mktemp("death") / "storage"
    with studio(storage) as process:
        taste = get_taste("shorter")
        for _ in range(16):
            comparison = process.post("/api/comparisons").json()
            choice = taste.prefers(comparison["a"], comparison["b"], 0.0, random.Random(0))
            answer = process.post(f"/api/comparisons/{comparison['id']}/vote", {"choice": choice.value})
            assert answer.status_code == 200
        yield process


def start_round(process: StudioProcess) -> int:
    """A round whose worker is running."""
    answer = process.post("/api/rounds")
    assert answer.status_code == 202, answer.text
    number = int(answer.json()["round"])
    process.wait_until(lambda: process.children(WORKER), "the worker", 30)
    return number


def start_long_round(process: StudioProcess) -> int:
    """A round of `NUM_STEPS` steps, with a checkpoint after each."""
    number = start_round(process)
    folder = folder_of(process, number)
    # The worker reads its plan after torch, which takes it seconds to load.
    job = read_json(folder.job)
    job["checkpoint_every_s"] = 0.0
    job["settings"] |= {"epochs": NUM_STEPS // 2, "learning_rate": 2e-4}
    write_json(folder.job, job)
    return number


def wait_until_it_went_on(process: StudioProcess, number: int, *, times: int) -> None:
    """Return while the round trains and has taken up its training so many times."""
    words = re.compile(f"Went on {STEP}(, then {STEP}){{{times - 1}}} after")
    process.wait_until(lambda: words.search(round_of(process, number)["reason"]), "the next worker", 90)
    assert round_of(process, number)["status"] == "running"


def folder_of(process: StudioProcess, number: int) -> RoundPaths:
    return StoragePaths(process.storage).round(number)


def steps_of(process: StudioProcess, number: int) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = process.get(f"/api/rounds/{number}/steps").json()["steps"]
    assert all(step["num_steps"] == NUM_STEPS for step in steps), "the plan was read before it was changed"
    return steps


def ended(process: StudioProcess, number: int) -> dict[str, str]:
    """The round, once nobody works on it any more."""
    active = ("queued", "running", "gating")
    process.wait_until(lambda: round_of(process, number)["status"] not in active, "the round to end", 200)
    return round_of(process, number)


@contextlib.contextmanager
def training_in_one_go(folder: RoundPaths, again: RoundPaths) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker on the same plan that nothing cuts off. It trains during the block."""
    again.root.mkdir()
    for file in (folder.job, folder.train, folder.heldout):
        shutil.copy(file, again.root)
    command = [sys.executable, "-m", WORKER, str(again.root)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def round_of(process: StudioProcess, number: int) -> dict[str, str]:
    entry: dict[str, str] = process.get(f"/api/rounds/{number}").json()
    return entry


def votes_on_disk(process: StudioProcess) -> int:
    with sqlite3.connect(process.storage / "studio.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (count,) = connection.execute("SELECT count(*) FROM vote WHERE is_current").fetchone()
    return int(count)


def test_a_round_goes_on_whatever_is_killed_or_stopped(running: StudioProcess, tmp_path: Path) -> None:
    """Its worker is killed, then its studio is stopped, then its studio is killed; the bits are the same."""
    number = start_long_round(running)
    running.wait_until(lambda: len(steps_of(running, number)) >= 4, "steps of training", 90)
    (worker,) = running.children(WORKER)
    worker.kill()
    wait_until_it_went_on(running, number, times=1)
    assert running.stop() == 0
    running.start()
    wait_until_it_went_on(running, number, times=2)
    children = running.children(WORKER) + running.children(ENGINE)
    assert len(children) >= 2
    running.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == [], "the studio's children outlived it"
    assert votes_on_disk(running) == 16
    folder, again = folder_of(running, number), RoundPaths(tmp_path / "again")
    # Beside the next start, which waits for the lease of the one that was killed.
    with training_in_one_go(folder, again) as in_one_go:
        running.start()
        entry = ended(running, number)
        assert in_one_go.wait(timeout=200) == 0
    assert entry["status"] in ("promoted", "rejected")
    assert re.search(f"Went on {STEP}, then {STEP}, then {STEP} after three interruptions$", entry["reason"])
    assert sha256_of_tree(folder.adapter) == sha256_of_tree(again.adapter)
    assert [step["step"] for step in steps_of(running, number)] == list(range(1, NUM_STEPS + 1))
    assert running.post("/api/generate", {"prompt": "hello", "version": "live"}).status_code == 200
    with sqlite3.connect(running.storage / "studio.db") as connection:
        query = "SELECT action FROM audit_event WHERE subject = ? ORDER BY id"
        actions = connection.execute(query, (f"round {number}",)).fetchall()
    assert actions == [("interrupt",), ("go on",)] * 3


def test_a_killed_engine_comes_back_with_the_live_version(running: StudioProcess) -> None:
    (engine,) = running.children(ENGINE)
    engine.send_signal(signal.SIGKILL)
    running.wait_until(lambda: running.get("/readyz").status_code == 503, "the studio to notice", 10)
    answer = running.post("/api/generate", {"prompt": "hello", "version": "live"})
    if answer.status_code != 200:
        assert answer.status_code == 503
        assert "model" in answer.json()["error"]["message"].lower()
    running.wait_until(lambda: running.get("/readyz").status_code == 200, "the engine to come back", 60)
    assert running.post("/api/generate", {"prompt": "hello", "version": "live"}).status_code == 200


def test_a_round_cancelled_before_the_crash_stays_ended(running: StudioProcess) -> None:
    """Its worker is frozen and hears neither the cancel nor the death of its studio; it ends all the same."""
    number = start_round(running)
    (worker,) = running.children(WORKER)
    worker.suspend()
    checkpoint = folder_of(running, number).checkpoint
    checkpoint.touch()
    assert running.post(f"/api/rounds/{number}/cancel").status_code == 200
    running.kill()
    assert worker.is_running()
    running.start()
    assert not worker.is_running()
    assert round_of(running, number)["status"] == "cancelled"
    assert not checkpoint.exists()


def test_a_round_can_be_cancelled(running: StudioProcess) -> None:
    """The first after that crash."""
    number = start_round(running)
    assert running.post(f"/api/rounds/{number}/cancel").status_code == 200
    # A worker that does not hear is ended by force after 30 s.
    running.wait_until(lambda: round_of(running, number)["status"] == "cancelled", "the cancellation", 45)
    assert running.children(WORKER) == []


def test_a_second_studio_on_the_same_storage_is_refused(running: StudioProcess) -> None:
    second = StudioProcess(running.storage)
    second.log = Path(f"{running.storage}-second.log")
    with pytest.raises(AssertionError, match="in use by a running studio"):
        second.start()
    assert "Traceback" not in second.log.read_text()


def test_a_taken_port_is_a_sentence(running: StudioProcess, tmp_path: Path) -> None:
    port = running.url.rsplit(":", 1)[1]
    second = StudioProcess(tmp_path / "other", ("--port", port))
    with pytest.raises(AssertionError, match="port"):
        second.start()
    assert "Traceback" not in second.log.read_text()


def test_an_unreadable_model_folder_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    process = StudioProcess(tmp_path / "storage", ("--model", str(tmp_path / "empty")))
    try:
        process.start(wait_for_model=False)
        process.wait_until(lambda: "config.json" in process.get("/readyz").text, "the failure to be said", 60)
        answer = process.post("/api/comparisons", {"prompt": "hello"})
        assert answer.status_code == 503
        assert str(tmp_path / "empty") in answer.json()["error"]["message"]
    finally:
        process.stop()
