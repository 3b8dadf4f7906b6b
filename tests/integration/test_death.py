"""kill -9 of worker, engine and studio in mid-round: no acknowledged vote is lost, the next start clean."""

import random
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dpo_studio.tastes import get_taste
from tests.integration.studio_process import StudioProcess, studio

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
WORKER = "dpo_studio.training.worker"
ENGINE = "dpo_studio.serving.process"


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


def round_of(process: StudioProcess, number: int) -> dict[str, str]:
    entry: dict[str, str] = process.get(f"/api/rounds/{number}").json()
    return entry


def votes_on_disk(process: StudioProcess) -> int:
    with sqlite3.connect(process.storage / "studio.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        (count,) = connection.execute("SELECT count(*) FROM vote WHERE is_current").fetchone()
    return int(count)


def test_a_killed_worker_fails_its_round_and_nothing_else(running: StudioProcess) -> None:
    live = running.get("/api/status").json()["live"]
    number = start_round(running)
    for child in running.children(WORKER):
        child.send_signal(signal.SIGKILL)
    running.wait_until(lambda: round_of(running, number)["status"] == "failed", "the round to fail", 20)
    assert "SIGKILL" in round_of(running, number)["reason"]
    assert running.get("/api/status").json()["live"] == live
    assert running.post("/api/generate", {"prompt": "hello", "version": "live"}).status_code == 200


def test_a_round_can_be_cancelled(running: StudioProcess) -> None:
    number = start_round(running)
    assert running.post(f"/api/rounds/{number}/cancel").status_code == 200
    # A worker that does not hear is ended by force after 30 s.
    running.wait_until(lambda: round_of(running, number)["status"] == "cancelled", "the cancellation", 45)
    assert running.children(WORKER) == []


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


def test_a_studio_killed_in_mid_round_starts_clean(running: StudioProcess) -> None:
    votes = votes_on_disk(running)
    number = start_round(running)
    children = running.children(WORKER) + running.children(ENGINE)
    assert len(children) >= 2
    running.kill()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == [], "the studio's children outlived it"
    assert votes_on_disk(running) == votes == 16
    running.start()
    entry = round_of(running, number)
    assert entry["status"] == "interrupted"
    assert "safe" in entry["reason"]
    again = start_round(running)
    assert again == number + 1
    running.post(f"/api/rounds/{again}/cancel")
    running.wait_until(lambda: round_of(running, again)["status"] == "cancelled", "the cancellation", 45)


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
