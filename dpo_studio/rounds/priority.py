"""Keep a worker behind serving on the CPU, but not for ever.

A nice'd process on a saturated machine may get 2 % of a core. This raises the priority of one that is
starved: no progress and hardly any CPU time during a whole window.
"""

import os
import resource
from contextlib import suppress

import psutil

_WINDOW_S = 20.0
_STARVED_SHARE = 0.15
"""CPU-seconds per second below which a worker that makes no progress counts as starved."""
_STEP = 5


class NicenessWatchdog:
    """Sets the niceness of one process group, and lowers it by steps towards 0 when it starves."""

    def __init__(self, pid: int, niceness: int) -> None:
        """`pid` leads its group. Lowering again needs rights; without them a milder start is chosen."""
        self._pid = pid
        self.niceness = niceness if _may_lower() else min(niceness, _STEP)
        self._window_start: float | None = None
        self._window_cpu_s = 0.0
        self._apply()

    def check(self, now: float, *, made_progress: bool) -> None:
        """Call often. Judges once a window; progress begins a new one."""
        if made_progress or self._window_start is None:
            self._begin(now)
        elif now - self._window_start >= _WINDOW_S and self.niceness > 0:
            share = (self._cpu_s() - self._window_cpu_s) / (now - self._window_start)
            if share < _STARVED_SHARE:
                self.niceness = max(0, self.niceness - _STEP)
                self._apply()
            self._begin(now)

    def _begin(self, now: float) -> None:
        self._window_start = now
        self._window_cpu_s = self._cpu_s()

    def _cpu_s(self) -> float:
        try:
            times = psutil.Process(self._pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def _apply(self) -> None:
        # By group: on Linux niceness belongs to threads, and a group's covers all threads of its processes.
        with suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PGRP, self._pid, self.niceness)


def _may_lower() -> bool:
    """Whether a niceness can be taken back: root may, others up to their RLIMIT_NICE."""
    # The limit is 20 − the lowest niceness allowed; not every system has one.
    limit = getattr(resource, "RLIMIT_NICE", None)
    return os.geteuid() == 0 or (limit is not None and resource.getrlimit(limit)[0] >= 20)
