"""The launcher tells every ending of a real child process apart, and leaves none behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dpo_studio.domain.codec import to_json
from dpo_studio.domain.round import RoundReport, StepProgress
from dpo_studio.errors import StorageError
from dpo_studio.files import sha256_of_tree
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.launcher import (
    LaunchSettings,
    WorkerOutcome,
    WorkerProcess,
    ask_to_stop,
    finished_before,
)
from dpo_studio.rounds.priority import NicenessWatchdog
from dpo_studio.rounds.process_identity import has_ended, identify, reap_orphan

REPORT = to_json(
    RoundReport(
        ok=True,
        reason="",
        num_steps=2,
        num_train=8,
        num_heldout=0,
        num_truncated=0,
        num_dropped=0,
        train_seconds=1.0,
        metrics={"loss": 0.5},
        heldout_margins=(),
        live_margins=(),
        candidate_probe=None,
        base_probe=None,
        adapter_sha256={},
    )
)
# A stand-in for the worker that starts in milliseconds and does what its script says.
PRELUDE = """
import json, os, signal, subprocess, sys, time
folder = sys.argv[-1]
def say(phase, step, metrics={}):
    line = {"phase": phase, "step": step, "num_steps": 2, "time": time.time(), "metrics": metrics}
    open(folder + "/progress.jsonl", "a").write(json.dumps(line) + "\\n")
def report(**changes):
    open(folder + "/report.json", "w").write(json.dumps({**REPORT, **changes}))
def is_cancelled():
    return os.path.exists(folder + "/cancel")
"""


def settings(script: str, **changes: float) -> LaunchSettings:
    program = f"{PRELUDE}\n{script}".replace("**REPORT", f"**json.loads({json.dumps(json.dumps(REPORT))})")
    return LaunchSettings(
        command=(sys.executable, "-c", program),
        poll_s=0.02,
        hang_s=changes.get("hang_s", 20.0),
        cancel_grace_s=changes.get("cancel_grace_s", 20.0),
        term_grace_s=changes.get("term_grace_s", 0.3),
    )


async def run(
    tmp_path: Path,
    script: str,
    during: Callable[[WorkerProcess, StepProgress], None] = lambda _worker, _progress: None,
    **changes: float,
) -> tuple[WorkerOutcome, list[StepProgress]]:
    """Launch `script` as a worker, calling `during` at each line of progress."""
    worker = await WorkerProcess.start(RoundPaths(tmp_path), settings(script, **changes))
    seen: list[StepProgress] = []

    def on_progress(progress: StepProgress) -> None:
        seen.append(progress)
        during(worker, progress)

    outcome = await asyncio.wait_for(worker.wait(on_progress), 30)
    assert identify(worker.pid) is None, "no ending may leave the process behind"
    return outcome, seen


async def test_a_finished_round_gives_its_report_and_every_step(tmp_path: Path) -> None:
    outcome, seen = await run(
        tmp_path, "say('loading', 0); say('training', 1, {'loss': 0.7}); say('done', 2); report()"
    )
    assert outcome.kind == "ok"
    assert outcome.report is not None
    assert outcome.report.metrics == {"loss": 0.5}
    assert [(p.phase, p.step, p.metrics) for p in seen] == [
        ("loading", 0, {}),
        ("training", 1, {"loss": 0.7}),
        ("done", 2, {}),
    ]


async def test_a_worker_that_ended_before_the_first_look_is_still_read(tmp_path: Path) -> None:
    """Its lines were lost when the child was quicker than the task that watches it."""
    script = "say('training', 1, {'loss': 0.7}); report()"
    worker = await WorkerProcess.start(RoundPaths(tmp_path), settings(script))
    async with asyncio.timeout(20):
        while identify(worker.pid) is not None:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    seen: list[StepProgress] = []
    outcome = await worker.wait(seen.append)
    assert (outcome.kind, len(seen)) == ("ok", 1)


async def test_heartbeats_are_not_passed_on(tmp_path: Path) -> None:
    _, seen = await run(
        tmp_path, "say('training', 1, {'loss': 0.7}); say('training', 1); say('training', 1); report()"
    )
    assert len(seen) == 1


async def test_a_torn_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    script = """
line = json.dumps({"phase": "training", "step": 1, "num_steps": 2, "time": 0.0, "metrics": {"loss": 0.7}})
with open(folder + "/progress.jsonl", "a") as file:
    file.write(line[:30]); file.flush(); time.sleep(0.3); file.write(line[30:] + "\\n")
report()
"""
    outcome, seen = await run(tmp_path, script)
    assert outcome.kind == "ok"
    assert [p.metrics for p in seen] == [{"loss": 0.7}]


async def test_a_refused_round_keeps_the_workers_reason(tmp_path: Path) -> None:
    outcome, _ = await run(tmp_path, "report(ok=False, reason='No pairs'); sys.exit(3)")
    assert (outcome.kind, outcome.reason) == ("failed", "No pairs")


async def test_a_crash_names_the_exit_code_and_the_log_holds_the_traceback(tmp_path: Path) -> None:
    outcome, _ = await run(tmp_path, "say('loading', 0); raise SystemError('boom')")
    assert outcome.kind == "failed"
    assert "exit code 1" in outcome.reason
    assert "boom" in RoundPaths(tmp_path).log.read_text()


@pytest.mark.parametrize("report", ["", "open(folder + '/report.json', 'w').write('{\"ok\": tr')"])
async def test_an_exit_without_a_readable_report_is_a_failure(tmp_path: Path, report: str) -> None:
    outcome, _ = await run(tmp_path, report)
    assert outcome.kind == "failed"
    assert "no report" in outcome.reason


def test_a_finished_workers_result_can_be_taken_later(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    paths.adapter.mkdir()
    (paths.adapter / "weights").write_text("whole")
    report = {**REPORT, "adapter_sha256": sha256_of_tree(paths.adapter)}
    assert finished_before(paths) is None, "there is no report"
    paths.report.write_text(json.dumps(report))
    outcome = finished_before(paths)
    assert outcome is not None and outcome.kind == "ok" and outcome.report is not None


@pytest.mark.parametrize("changes", [{"ok": False}, {"adapter_sha256": {}}, {"adapter_sha256": {"a": "b"}}])
def test_a_failed_or_half_result_is_not_taken_later(tmp_path: Path, changes: dict[str, object]) -> None:
    paths = RoundPaths(tmp_path)
    paths.adapter.mkdir()
    (paths.adapter / "weights").write_text("whole")
    report = {**REPORT, "adapter_sha256": sha256_of_tree(paths.adapter), **changes}
    paths.report.write_text(json.dumps(report))
    assert finished_before(paths) is None


async def test_an_old_report_is_never_taken_for_a_new_one(tmp_path: Path) -> None:
    RoundPaths(tmp_path).report.write_text(json.dumps(REPORT))
    outcome, _ = await run(tmp_path, "")
    assert outcome.kind == "failed"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_killed_worker_names_its_signal(tmp_path: Path, number: signal.Signals) -> None:
    outcome, _ = await run(
        tmp_path,
        "say('training', 1); time.sleep(60)",
        during=lambda worker, _: os.kill(worker.pid, number),
    )
    assert outcome.kind == "killed"
    assert number.name in outcome.reason


async def test_a_worker_that_obeys_a_signal_from_outside_was_killed_and_not_cancelled(tmp_path: Path) -> None:
    """A machine that goes down tells its processes first: their rounds counted as cancelled by a person."""
    script = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(4)); say('training', 1); time.sleep(60)"
    outcome, _ = await run(tmp_path, script, during=lambda worker, _: os.kill(worker.pid, signal.SIGTERM))
    assert outcome.kind == "killed"
    assert "signal from outside" in outcome.reason


async def test_a_killed_worker_that_was_to_stop_is_cancelled(tmp_path: Path) -> None:
    """The wish is in the folder, also when another process of the studio had left it there."""
    script = "say('training', 1); os.kill(os.getpid(), signal.SIGKILL)"
    ask_to_stop(RoundPaths(tmp_path))
    outcome, _ = await run(tmp_path, script)
    assert outcome.kind == "cancelled"


async def test_a_silent_worker_is_stopped_as_hung(tmp_path: Path) -> None:
    outcome, _ = await run(tmp_path, "say('training', 1); time.sleep(60)", hang_s=0.5)
    assert outcome.kind == "hung"


async def test_a_worker_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    script = "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('training', 1); time.sleep(60)"
    started = time.monotonic()
    outcome, _ = await run(tmp_path, script, hang_s=0.5)
    assert outcome.kind == "hung"
    assert time.monotonic() - started < 10


async def test_a_stopped_worker_is_hung_and_still_dies(tmp_path: Path) -> None:
    outcome, _ = await run(
        tmp_path,
        "say('training', 1); time.sleep(60)",
        during=lambda worker, _: os.kill(worker.pid, signal.SIGSTOP),
        hang_s=0.5,
    )
    assert outcome.kind == "hung"


async def test_heartbeats_keep_a_slow_worker_alive(tmp_path: Path) -> None:
    outcome, _ = await run(
        tmp_path, "for _ in range(12):\n    say('training', 1); time.sleep(0.1)\nreport()", hang_s=0.8
    )
    assert outcome.kind == "ok"


async def test_cancel_is_asked_by_file_first(tmp_path: Path) -> None:
    outcome, _ = await run(
        tmp_path,
        "say('training', 1)\nwhile not is_cancelled(): time.sleep(0.02)\nsys.exit(4)",
        during=lambda worker, _: worker.cancel(),
    )
    assert outcome == WorkerOutcome("cancelled", "The round was cancelled")


async def test_a_worker_deaf_to_cancel_is_killed_and_still_cancelled(tmp_path: Path) -> None:
    outcome, _ = await run(
        tmp_path,
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); say('training', 1); time.sleep(60)",
        during=lambda worker, _: worker.cancel(),
        cancel_grace_s=0.2,
    )
    assert outcome.kind == "cancelled"


async def test_a_hundred_megabytes_of_output_do_not_block(tmp_path: Path) -> None:
    outcome, _ = await run(
        tmp_path, "for _ in range(100): sys.stdout.write('x' * 1_000_000 + '\\n')\nreport()"
    )
    assert outcome.kind == "ok"


async def test_grandchildren_die_with_the_worker(tmp_path: Path) -> None:
    script = "p = subprocess.Popen(['sleep', '60']); say('training', p.pid); os._exit(1)"
    _, seen = await run(tmp_path, script)
    await gone(seen[0].step)


async def test_a_program_that_does_not_exist_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not be started"):
        await WorkerProcess.start(RoundPaths(tmp_path), LaunchSettings(command=("/no/such/program",)))


async def test_the_worker_is_nice_leads_its_session_and_sleeps_while_waiting(tmp_path: Path) -> None:
    script = "say('training', os.getpriority(os.PRIO_PROCESS, 0), {os.environ['OMP_WAIT_POLICY']: 1.0})\n"
    leads: list[bool] = []

    def look(worker: WorkerProcess, _progress: StepProgress) -> None:
        leads.append(os.getsid(worker.pid) == worker.pid)
        worker.cancel()

    _, seen = await run(
        tmp_path,
        f"time.sleep(0.3)\n{script}while not is_cancelled(): time.sleep(0.02)",
        during=look,
    )
    assert leads == [True]
    assert seen[0].step >= 5
    assert "PASSIVE" in seen[0].metrics


async def test_shutting_down_the_studio_kills_the_worker(tmp_path: Path) -> None:
    worker = await WorkerProcess.start(RoundPaths(tmp_path), settings("time.sleep(60)"))
    waiting = asyncio.create_task(worker.wait(lambda _: None))
    await asyncio.sleep(0.2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert identify(worker.pid) is None


def test_an_orphan_is_reaped_only_when_it_is_the_very_same_process() -> None:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        identity = identify(process.pid)
        assert identity is not None
        assert not reap_orphan(process.pid, identity.started + 1, identity.boot_id)
        assert not reap_orphan(process.pid, identity.started, "another boot")
        assert process.poll() is None
        assert reap_orphan(process.pid, identity.started, identity.boot_id)
        assert process.wait(5) == -signal.SIGKILL
        assert not reap_orphan(process.pid, identity.started, identity.boot_id)
    finally:
        process.kill()
        process.wait()


def test_the_end_of_a_process_is_waited_for_and_no_longer_than_told() -> None:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        who = identify(process.pid)
        assert who is not None
        assert not has_ended(who, timeout_s=0.1)
        process.kill()
        assert has_ended(who, timeout_s=5)
    finally:
        process.kill()
        process.wait()


def test_a_starved_worker_gets_its_priority_back_by_steps() -> None:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        watchdog = NicenessWatchdog(process.pid, 10)
        first = watchdog.niceness
        found = []
        for now in (0.0, 10.0, 21.0, 42.0, 63.0):
            watchdog.check(now, made_progress=False)
            found.append(os.getpriority(os.PRIO_PROCESS, process.pid))
        # No progress and no CPU time for 20 s: five steps up, until it is like any other process.
        assert found == [first, first, first - 5, max(0, first - 10), max(0, first - 10)]
    finally:
        process.kill()
        process.wait()


def test_a_worker_that_makes_progress_stays_behind_serving() -> None:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        watchdog = NicenessWatchdog(process.pid, 10)
        first = watchdog.niceness
        for now in range(0, 100, 10):
            watchdog.check(float(now), made_progress=True)
        assert watchdog.niceness == first
    finally:
        process.kill()
        process.wait()


async def gone(pid: int) -> None:
    """Wait until a process has ended (a zombie of another parent counts)."""
    for _ in range(200):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"process {pid} still runs")
