"""The server's life: bind, announce, stop."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import HTMLResponse

from dpo_studio.errors import SettingsError
from dpo_studio.web.server import StudioServer, address_of, bind

PROGRAM = """
import asyncio, sys
from contextlib import asynccontextmanager
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, StreamingResponse
from dpo_studio.web.server import bind, run_server

def say(line):
    print(line, flush=True)

@asynccontextmanager
async def lifespan(app):
    yield
    say("lifespan stopped")

app = FastAPI(lifespan=lifespan)

@app.get("/")
async def page():
    return HTMLResponse("page")

@app.get("/stream")
async def stream():
    async def chunks():
        for number in range(8):
            yield f"{number}\\n"
            await asyncio.sleep(0.1)
    return StreamingResponse(chunks())

run_server(app, bind("127.0.0.1", 0), announce=say, on_stop=lambda: say("stopping"))
say("ended")
"""


def test_a_port_in_use_is_one_sentence() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port: {port} is in use on 127.0.0.1; .* --port"):
            bind("127.0.0.1", port)


def test_a_freed_port_can_be_bound_again_at_once() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            first.accept()[0].close()
    bind("127.0.0.1", port).close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_foreign_address_is_one_sentence(host: str) -> None:
    with pytest.raises(SettingsError, match="host: "):
        bind(host, 0)


def test_a_forbidden_port_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(SettingsError, match="above 1023"):
        bind("127.0.0.1", 80)


def test_addresses_are_urls() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_ready_is_announced_once_the_page_answers() -> None:
    lines, url = announced(lambda: HTMLResponse("page"))
    assert lines == [f"DPO Studio is ready at {url}"]


def test_a_page_that_fails_is_not_announced_as_ready() -> None:
    lines, url = announced(lambda: HTMLResponse("broken", status_code=500))
    assert lines == [f"DPO Studio runs at {url}, but its page answers 500; the log says why"]


def test_a_signal_sets_every_stop_event_and_a_second_one_forces() -> None:
    stopped: list[str] = []
    app = FastAPI()
    gradio = FastAPI()
    gradio.stop_event = threading.Event()  # type: ignore[attr-defined]
    app.mount("/", gradio)
    server = StudioServer(app, "http://x", announce=stopped.append, on_stop=lambda: stopped.append("stop"))
    server.handle_exit(signal.SIGTERM, None)
    assert server.should_exit and not server.force_exit
    assert stopped == ["stop"]
    assert gradio.stop_event.is_set()  # type: ignore[attr-defined]
    server.handle_exit(signal.SIGINT, None)
    assert server.force_exit


@pytest.mark.integration
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_open_streams_end_and_exits_with_zero(tmp_path: Path, sent: signal.Signals) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        url = process.stdout.readline().removeprefix("DPO Studio is ready at ").strip()
        with httpx.stream("GET", f"{url}/stream") as response:
            lines = response.iter_lines()
            assert next(lines) == "0"
            process.send_signal(sent)
            assert list(lines)[-1] == "7"
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert output.split("\n") == ["stopping", "lifespan stopped", "ended", ""]
    assert (process.returncode, errors) == (0, "")


def announced(page: Callable[[], HTMLResponse]) -> tuple[list[str], str]:
    """What the server says of an app whose page answers so, and its address."""
    lines: list[str] = []
    app = FastAPI()
    app.add_api_route("/", page, response_model=None)
    listener = bind("127.0.0.1", 0)
    url = address_of(listener)
    server = StudioServer(app, url, announce=lines.append, on_stop=lambda: None)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not lines and time.monotonic() < deadline:
        time.sleep(0.01)
    server.should_exit = True
    thread.join(20)
    listener.close()
    return lines, url
