"""When the worker must end: a cancel file, SIGTERM, or the death of the process that started it.

A parent's death is seen as end-of-file on stdin, which the parent holds open; unlike a death signal from
the kernel this also works when the parent's thread (not the parent) ends, and takes grandchildren along.
"""

import os
import signal
import stat
import sys
import threading
from pathlib import Path


class Cancellation:
    """Whether someone asked to stop: SIGTERM or SIGINT, or the existence of `file`."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._signalled = False

    def listen(self) -> None:
        """Take SIGTERM and SIGINT as requests, for the rest of the process."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def requested(self) -> bool:
        return self._signalled or self._file.exists()

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._signalled = True


def die_with_stdin() -> None:
    """Kill this process and its group as soon as stdin ends, if stdin is a pipe or socket.

    A terminal, a file and /dev/null are not lifelines, so the worker can be started by hand.
    """
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        threading.Thread(target=_watch, args=(sys.stdin.fileno(),), name="lifeline", daemon=True).start()


def _watch(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass
    os.write(2, b"stdin has ended: whoever started this worker is gone, so it ends too\n")
    # Only a group of our own may be killed whole; a shell's pipeline shares its group with others.
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)
