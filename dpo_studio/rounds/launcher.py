"""The training worker as a child process: started, watched, and told apart by how it ended.

The child leads a session of its own and holds the read end of a pipe whose write end is ours: when this
process dies, however it dies, the pipe ends and the child kills its whole group. Nothing that the child
does reaches the caller as an exception; every ending is a `WorkerOutcome`.

Not covered: a child that ignores SIGKILL (uninterruptible disk wait), and machines that lose power.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dpo_studio
from dpo_studio.domain.codec import from_json
from dpo_studio.domain.round import RoundReport, StepProgress
from dpo_studio.errors import BadInput, StorageError
from dpo_studio.files import read_json, sha256_of_tree, write_bytes
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.priority import NicenessWatchdog
from dpo_studio.rounds.process_identity import ProcessIdentity, identify, kill_group
from dpo_studio.rounds.progress_tail import ProgressTail

COMMAND = (sys.executable, "-m", "dpo_studio.training.worker")
# What the worker exits with when it was asked to stop; `dpo_studio.training.attempt` has the same number.
EXIT_CANCELLED = 4

OutcomeKind = Literal["ok", "failed", "killed", "hung", "cancelled"]


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """How a worker is run and watched."""

    niceness: int = 10
    """Serving keeps its speed beside a worker at 10; at 19 the worker starves on a busy machine."""
    hang_s: float = 120.0
    """No line of progress for so long means that the worker hangs. It writes a heartbeat every 2 s; the
    import of torch from a cold disk comes before the first."""
    cancel_grace_s: float = 20.0
    """From a cancel to SIGTERM; a worker looks for the cancel file between steps."""
    term_grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    poll_s: float = 0.2
    command: Sequence[str] = COMMAND
    """Program and arguments before the round's folder."""


@dataclass(frozen=True, slots=True)
class WorkerOutcome:
    """How a worker ended."""

    kind: OutcomeKind
    reason: str
    """Empty when ok; else one sentence for people."""
    report: RoundReport | None = None
    """Present when ok."""


CANCELLED = WorkerOutcome("cancelled", "The round was cancelled")


class WorkerProcess:
    """One worker. Made by `start`; `wait` must be awaited by exactly one task until it returns."""

    def __init__(
        self, process: asyncio.subprocess.Process, paths: RoundPaths, settings: LaunchSettings
    ) -> None:
        self._process = process
        self._paths = paths
        self._settings = settings
        self._tail = ProgressTail(paths.progress)
        self._niceness = NicenessWatchdog(process.pid, settings.niceness)
        self._last_line = time.monotonic()
        self._is_cancelled = False
        self._is_hung = False
        self._term_at: float | None = None
        self._kill_at: float | None = None
        self.identity: ProcessIdentity | None = identify(process.pid)

    @classmethod
    async def start(cls, paths: RoundPaths, settings: LaunchSettings | None = None) -> "WorkerProcess":
        """Start a worker on a round's folder. Raises StorageError when it cannot be started."""
        settings = settings or LaunchSettings()
        paths.report.unlink(missing_ok=True)
        starting = asyncio.create_task(_start_process(paths, settings))
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # Half a start would leave a child that nobody waits for.
            process = await starting
            kill_group(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        except OSError as error:
            raise StorageError(
                f"The training process could not be started in {paths.root}: {error}"
            ) from error
        _prefer_for_oom(process.pid)
        return cls(process, paths, settings)

    @property
    def pid(self) -> int:
        return self._process.pid

    def cancel(self) -> None:
        """Ask the worker to stop; by force if it has not within the grace times. Returns at once."""
        if not self._is_cancelled:
            self._is_cancelled = True
            self._term_at = time.monotonic() + self._settings.cancel_grace_s
            ask_to_stop(self._paths)

    async def wait(self, on_progress: Callable[[StepProgress], None]) -> WorkerOutcome:
        """Watch the worker until it has ended, passing on what it reports.

        Being cancelled itself (the studio shuts down) kills the worker.
        """
        try:
            # Not `process.wait()`: it also waits for the pipe, which a grandchild may hold open.
            while self._process.returncode is None:
                await asyncio.sleep(self._settings.poll_s)
                self._watch(on_progress)
            # It may have ended before the first look.
            self._read(on_progress)
            return self._outcome(self._process.returncode)
        finally:
            # Whatever the worker itself started must not outlive it.
            kill_group(self.pid, signal.SIGKILL)
            while self._process.returncode is None:
                await asyncio.sleep(0.01)
            if self._process.stdin is not None:
                self._process.stdin.close()

    def _read(self, on_progress: Callable[[StepProgress], None]) -> bool:
        """Pass on what is new; whether anything was."""
        num_lines, news = self._tail.read()
        for progress in news:
            on_progress(progress)
        if num_lines:
            self._last_line = time.monotonic()
        return bool(news)

    def _watch(self, on_progress: Callable[[StepProgress], None]) -> None:
        made_progress = self._read(on_progress)
        now = time.monotonic()
        self._niceness.check(now, made_progress=made_progress)
        if self._term_at is None and now - self._last_line > self._settings.hang_s:
            self._is_hung = True
            self._term_at = now
        if self._term_at is not None and now >= self._term_at and self._kill_at is None:
            self._kill_at = now + self._settings.term_grace_s
            kill_group(self.pid, signal.SIGTERM)
        if self._kill_at is not None and now >= self._kill_at:
            kill_group(self.pid, signal.SIGKILL)

    def _outcome(self, exit_code: int) -> WorkerOutcome:
        if self._is_cancelled or self._paths.cancel.exists():
            return CANCELLED
        if self._is_hung:
            return WorkerOutcome(
                "hung",
                f"The training process said nothing for {self._settings.hang_s:.0f} seconds and was stopped",
            )
        if exit_code < 0:
            return WorkerOutcome("killed", _killed_by(-exit_code))
        if exit_code == EXIT_CANCELLED:
            # Nobody here asked it to: the machine goes down, or someone ended the process from outside.
            return WorkerOutcome("killed", "The training process was told to end by a signal from outside")
        report = _read_report(self._paths.report)
        if report is None:
            return WorkerOutcome(
                "failed",
                f"The training process ended with exit code {exit_code} and no report; see train.log",
            )
        if exit_code or not report.ok:
            reason = report.reason or f"The training process ended with exit code {exit_code}; see train.log"
            return WorkerOutcome("failed", reason)
        return WorkerOutcome("ok", "", report)


def ask_to_stop(paths: RoundPaths) -> None:
    """Leave word in a round's folder that its training is to stop; it is still there after a crash."""
    # On a full disk the file cannot be made; the signal then asks instead.
    with contextlib.suppress(OSError):
        write_bytes(paths.cancel, b"")


def finished_before(paths: RoundPaths) -> WorkerOutcome | None:
    """What an earlier worker left whole, if it came to its end and the studio died before taking it."""
    report = _read_report(paths.report)
    if report is None or not report.ok or not report.adapter_sha256:
        return None
    try:
        is_whole = sha256_of_tree(paths.adapter) == report.adapter_sha256
    except OSError:
        return None
    return WorkerOutcome("ok", "", report) if is_whole else None


async def _start_process(paths: RoundPaths, settings: LaunchSettings) -> asyncio.subprocess.Process:
    with paths.log.open("ab") as log:
        return await asyncio.create_subprocess_exec(
            *settings.command,
            str(paths.root),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=_environment(),
        )


def _environment() -> dict[str, str]:
    """Ours, with this very package, and threads that sleep while they wait.

    Spinning threads would take serving's core. A studio started as `python app.py` finds its package by the
    script's folder, which a child started with -m would not.
    """
    path = [str(Path(dpo_studio.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONPATH": os.pathsep.join(path),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _prefer_for_oom(pid: int) -> None:
    """When the machine runs out of memory, the kernel shall take the worker and not the server."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("500", "ascii")


def _killed_by(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = "; the machine may have run out of memory" if number == signal.SIGKILL else ""
    return f"The training process was killed by {name}{hint}"


def _read_report(path: Path) -> RoundReport | None:
    try:
        return from_json(RoundReport, read_json(path), where=path.name)
    except (OSError, ValueError, BadInput):
        return None
