"""The HTTP server: bind first, announce when the page answers, stop within seconds.

The socket is bound before anything slow starts, so that a port in use is one sentence at once. On SIGINT
or SIGTERM open streams are told to end (`on_stop`), get a grace to finish, and the lifespan's stop runs;
then the process ends with 0, as stopping is no failure.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from types import FrameType

import httpx
import uvicorn
from fastapi import FastAPI

from dpo_studio.errors import SettingsError

GRACE_S = 20
"""For answers in flight after a stop was asked; a second signal ends it."""
FIRST_ANSWER_S = 120.0
"""For the first answer of the page; Gradio builds it lazily, slowly on a busy machine."""


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 lets the system choose. Raises SettingsError when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(
            f"host: expected an address of this machine, found {host} ({error.strerror})"
        ) from error
    try:
        # Without it a restart within a minute finds the port still in TIME_WAIT.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # bind() alone lets a second studio bind too (SO_REUSEADDR); listening settles it.
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise SettingsError(_bind_sentence(host, port, error)) from error
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """The URL that reaches `listener`."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_server(
    app: FastAPI,
    listener: socket.socket,
    *,
    announce: Callable[[str], None],
    on_stop: Callable[[], None] = lambda: None,
) -> None:
    """Serve `app` on `listener` until a signal. `announce` gets the line that the page answers.

    Must run in the main thread to see signals.
    """
    server = StudioServer(app, address_of(listener), announce=announce, on_stop=on_stop)
    try:
        server.run(sockets=[listener])
    finally:
        listener.close()


class StudioServer(uvicorn.Server):
    """uvicorn with our ending and our announcement."""

    def __init__(
        self, app: FastAPI, url: str, *, announce: Callable[[str], None], on_stop: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self._app = app
        self._url = url
        self._announce = announce
        self._on_stop = on_stop
        self._announcing: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening, then announce as soon as the page really answers."""
        await super().startup(sockets)
        self._announcing = asyncio.create_task(self._announce_when_answering())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, let answers in flight end, run the lifespan's stop."""
        if self._announcing is not None:
            self._announcing.cancel()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: end gently; second: now. Not recorded, so that uvicorn does not raise it again."""
        del sig, frame
        self._on_stop()
        for route in self._app.routes:
            # Gradio holds a stream open per tab that uses state; its stop event ends them.
            stop_event = getattr(getattr(route, "app", None), "stop_event", None)
            if stop_event is not None:
                stop_event.set()
        self.force_exit = self.should_exit
        self.should_exit = True

    async def _announce_when_answering(self) -> None:
        try:
            async with httpx.AsyncClient(timeout=FIRST_ANSWER_S, trust_env=False) as client:
                page = await client.get(self._url, headers={"Accept": "text/html"}, follow_redirects=True)
            problem = "" if page.is_success else f"answers {page.status_code}"
        except httpx.HTTPError as error:
            problem = f"does not answer ({type(error).__name__})"
        if problem:
            self._announce(f"DPO Studio runs at {self._url}, but its page {problem}; the log says why")
        else:
            self._announce(f"DPO Studio is ready at {self._url}")


def _bind_sentence(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port: {port} is in use on {host}; stop what uses it, or choose another with --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port: {port} may not be opened by this user; choose one above 1023 with --port"
    return f"host: cannot listen on {host} port {port} ({error.strerror}); use --host 127.0.0.1"
