"""Progress lines: every report is one, heartbeats fill the silence, and a stuck worker falls silent."""

import time
from pathlib import Path

from dpo_studio.paths import RoundPaths
from dpo_studio.training.progress import ProgressLog
from tests.training.rounds import read_progress


def wait_for(paths: RoundPaths, count: int) -> None:
    deadline = time.monotonic() + 5
    while len(read_progress(paths)) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_reports_are_lines_in_order(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    log = ProgressLog(paths.progress, clock=lambda: 5.0)
    log.start()
    log.report("training", 1, 9, {"loss": 0.5})
    log.report("done", 9, 9)
    log.stop()
    found = [(p.phase, p.step, p.num_steps, p.time, p.metrics) for p in read_progress(paths)]
    assert found == [
        ("loading", 0, 0, 5.0, {}),
        ("training", 1, 9, 5.0, {"loss": 0.5}),
        ("done", 9, 9, 5.0, {}),
    ]


def test_a_silent_stretch_is_filled_with_heartbeats_without_metrics(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    log = ProgressLog(paths.progress, heartbeat_s=0.01)
    log.start()
    log.report("training", 1, 9, {"loss": 0.5})
    wait_for(paths, 5)
    log.stop()
    beats = read_progress(paths)[-2:]
    assert [(p.phase, p.step, p.metrics) for p in beats] == [("training", 1, {})] * 2


def test_no_line_follows_a_stop(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    log = ProgressLog(paths.progress, heartbeat_s=0.01)
    log.start()
    log.stop()
    count = len(read_progress(paths))
    time.sleep(0.05)
    assert len(read_progress(paths)) == count


def test_a_worker_that_reports_nothing_for_long_loses_its_heartbeat(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    now = [100.0]
    log = ProgressLog(paths.progress, clock=lambda: now[0], heartbeat_s=0.01, stall_s=60.0)
    log.start()
    wait_for(paths, 3)
    now[0] = 161.0
    time.sleep(0.05)
    count = len(read_progress(paths))
    time.sleep(0.1)
    assert len(read_progress(paths)) == count
    log.report("training", 1, 9)
    wait_for(paths, count + 3)
    log.stop()
    assert len(read_progress(paths)) >= count + 3
