"""The engine process: `python -m dpo_studio.serving.process`, JSON lines on stdin and stdout.

The main thread loads the model and then owns it; one thread reads commands, one writes events. Libraries may
print: stdout is moved away first and they write to stderr (the log). When stdin ends the parent is gone, and
so is this process at once, even while it still imports: torch is imported only after the watch is set up.
"""

import logging
import os
import queue
import sys
import threading
from typing import Any, BinaryIO

from dpo_studio.errors import StudioError
from dpo_studio.serving import wire

logger = logging.getLogger(__name__)


class _Outbox:
    """Events to the parent, written by a thread of their own so that a slow reader delays no token."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()

    def send(self, event: wire.Event) -> None:
        self._lines.put(wire.encode(event))

    def close(self) -> None:
        """Wait until everything is written."""
        self._lines.put(None)
        self._thread.join()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._file.write(line)
                if self._lines.empty():
                    self._file.flush()
            except OSError:
                os._exit(0)
        self._file.flush()


def main() -> int:
    """Run until stdin ends. Returns only when there is no model to run or it is broken."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    outbox = _Outbox(_take_stdout())
    commands = sys.stdin.buffer
    start = wire.decode(commands.readline())
    assert isinstance(start, wire.Start)
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read_commands, args=(commands, inbox), name="inbox", daemon=True).start()
    code = _serve(start.settings, inbox, outbox)
    outbox.close()
    return code


def _serve(settings: wire.EngineSettings, inbox: "queue.SimpleQueue[Any]", outbox: _Outbox) -> int:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from dpo_studio.serving.host import EngineHost

    disable_progress_bar()
    torch.set_num_threads(settings.threads or max(1, (os.cpu_count() or 2) - 1))
    host = EngineHost(settings, inbox, outbox.send)
    try:
        host.load()
    except StudioError as error:
        logger.error("no model: %s", error)
        host.refuse(error)
    else:
        host.run()
    return 1


def _take_stdout() -> BinaryIO:
    """The real stdout for our lines only; everything printed goes to stderr from now on."""
    ours = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)
    return ours


def _read_commands(commands: BinaryIO, inbox: "queue.SimpleQueue[Any]") -> None:
    for line in commands:
        inbox.put(wire.decode(line))
    # The parent closed the pipe or died; nobody is left to answer to.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
