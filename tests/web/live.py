"""A real HTTP server in a thread, for what an in-process client cannot show: streams, sockets, clients."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from dpo_studio.web.server import address_of, bind


@contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The URL of `app` on a free port, for the length of the block."""
    listener = bind("127.0.0.1", 0)
    config = uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False, lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the test server did not start"
        time.sleep(0.01)
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
