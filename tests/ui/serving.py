"""The demo application in a thread, for tests that need HTTP."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import uvicorn
from fastapi import FastAPI

from tests.ui.demo import build_app
from tests.ui.fakes import World


@dataclass(frozen=True, slots=True)
class Served:
    """A running application and the world behind it."""

    url: str
    world: World


@contextmanager
def serve(world: World, storage: Path) -> Iterator[Served]:
    """The fake studio on a free port of the loopback address."""
    with serve_app(build_app(world, storage)) as url:
        yield Served(url, world)


@contextmanager
def serve_app(app: FastAPI) -> Iterator[str]:
    """Any application, until the block ends; yields its address once it answers."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        _wait_until_answering(url)
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()


def _wait_until_answering(url: str) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{url}/config", timeout=30).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"nothing answered at {url}")
