"""`progress.jsonl`: what the worker is doing, one line a step, and a heartbeat in between.

A heartbeat repeats the last line without metrics. It stops when the worker itself has reported nothing
for `stall_s`, so that a worker caught in an endless wait looks as dead as it is.
"""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from dpo_studio.domain.codec import to_json
from dpo_studio.domain.round import StepProgress
from dpo_studio.files import append_jsonl

Phase = Literal["loading", "reference", "training", "evaluating", "done"]

HEARTBEAT_S = 2.0
# A step of a large model on a CPU, or a download without news, may take minutes; none takes this long.
STALL_S = 1800.0


class ProgressLog:
    """Appends to `path`. `start()` and `stop()` frame the heartbeat thread; safe from any thread."""

    def __init__(
        self,
        path: Path,
        *,
        clock: Callable[[], float] = time.time,
        heartbeat_s: float = HEARTBEAT_S,
        stall_s: float = STALL_S,
    ) -> None:
        self._path = path
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._stall_s = stall_s
        self._lock = threading.Lock()
        self._last = StepProgress("loading", 0, 0, clock(), {})
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Write the first line and begin to beat."""
        self._append(self._last)
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeat. Returns when no more line will be written by it."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def report(
        self, phase: Phase, step: int, num_steps: int, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Say where the work stands."""
        with self._lock:
            self._last = StepProgress(phase, step, num_steps, self._clock(), dict(metrics or {}))
            self._append(self._last)

    def _beat(self) -> None:
        while not self._stopped.wait(self._heartbeat_s):
            with self._lock:
                now = self._clock()
                if now - self._last.time < self._stall_s:
                    last = self._last
                    self._append(StepProgress(last.phase, last.step, last.num_steps, now, {}))

    def _append(self, progress: StepProgress) -> None:
        append_jsonl(self._path, to_json(progress))
