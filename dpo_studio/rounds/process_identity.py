"""Which process a number means: process ids are reused, so a pid alone must never be killed."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, for as long as this machine remembers it."""

    pid: int
    started: float
    """Clock ticks after boot on Linux, seconds since the epoch elsewhere; compared, never calculated with."""
    boot_id: str
    """Differs after a reboot."""


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a running process; None when there is none, or only its zombie."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessIdentity(pid, _start_time(process), _boot_id())
    except (psutil.Error, OSError):
        return None


def reap_orphan(pid: int, started: float, boot_id: str) -> bool:
    """Kill a worker that outlived the studio which started it, with its whole group.

    Does nothing (returns False) when that very process is gone, whoever has its number now.
    """
    if identify(pid) != ProcessIdentity(pid, started, boot_id):
        return False
    kill_group(pid, signal.SIGKILL)
    return True


def has_ended(who: ProcessIdentity, *, timeout_s: float) -> bool:
    """Whether that very process is gone, after waiting for it. A killed one may linger in the kernel."""
    deadline = time.monotonic() + timeout_s
    while identify(who.pid) == who:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def kill_group(pid: int, number: signal.Signals) -> None:
    """Signal the process group that `pid` leads. A group that is gone is no error."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _start_time(process: psutil.Process) -> float:
    # psutil converts ticks to wall time, which shifts when the clock is set; the ticks do not.
    stat = Path(f"/proc/{process.pid}/stat")
    if not stat.exists():
        return float(process.create_time())
    # The second field is the command in parentheses and may itself hold spaces and parentheses.
    return float(stat.read_text("utf-8", "replace").rpartition(")")[2].split()[19])


def _boot_id() -> str:
    file = Path("/proc/sys/kernel/random/boot_id")
    return file.read_text("utf-8").strip() if file.exists() else str(int(psutil.boot_time()))
