"""A real studio in a process of its own, driven over HTTP: what the integration and browser tests start."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
READY_LINE = re.compile(r"DPO Studio is ready at (\S+)")


@dataclass
class StudioProcess:
    """`python app.py` on a storage folder; may be killed and started again on the same folder."""

    storage: Path
    flags: tuple[str, ...] = ()
    process: "subprocess.Popen[str] | None" = None
    url: str = ""
    log: Path = field(init=False)
    # Without TLS and kept connections: a client of its own for every request costs 25 ms of the processor
    # that the studio needs, ten times a second while something is waited for.
    client: httpx.Client = field(
        init=False,
        default_factory=lambda: httpx.Client(verify=False, limits=httpx.Limits(max_keepalive_connections=0)),
    )

    def __post_init__(self) -> None:
        self.log = self.storage.with_suffix(".log")

    def start(self, *, wait_for_model: bool = True) -> None:
        """Return when the page answers, and by default when the model does too."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with self.log.open("a") as log:
            position = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "app.py", "--port", "0", "--storage", str(self.storage), *self.flags],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.url = self._wait_for_line(position, timeout_s=60)
        if wait_for_model:
            self.wait_until(lambda: self.get("/readyz").status_code == 200, "the model is ready", 90)

    def kill(self) -> None:
        """SIGKILL to the web process alone: its children must notice by themselves."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=10)

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(timeout=40)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise

    def children(self, program: str) -> list[psutil.Process]:
        """Living children whose command line names `program`."""
        assert self.process is not None
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if program in " ".join(child.cmdline())]

    def get(self, path: str) -> httpx.Response:
        return self.client.get(f"{self.url}{path}", timeout=30)

    def post(self, path: str, body: Any = None) -> httpx.Response:
        return self.client.post(f"{self.url}{path}", json={} if body is None else body, timeout=60)

    def wait_until(self, condition: Any, what: str, timeout_s: float) -> None:
        """Poll `condition`; fail with the log's end when it does not come true."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            assert self.process is not None
            if self.process.poll() is not None:
                break
            try:
                if condition():
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"waited for {what}; the log ends:\n{self.log.read_text()[-3000:]}")

    def _wait_for_line(self, position: int, *, timeout_s: float) -> str:
        deadline = time.monotonic() + timeout_s
        assert self.process is not None
        while time.monotonic() < deadline and self.process.poll() is None:
            found = READY_LINE.search(self.log.read_text()[position:])
            if found:
                return found.group(1).rstrip("/")
            time.sleep(0.1)
        raise AssertionError(f"the studio did not start:\n{self.log.read_text()[-3000:]}")


@contextmanager
def studio(storage: Path, *flags: str) -> Iterator[StudioProcess]:
    """A started studio, stopped at the end whatever happened."""
    process = StudioProcess(storage, flags)
    try:
        process.start()
        yield process
    finally:
        if process.process is not None and process.process.poll() is None:
            process.stop()
