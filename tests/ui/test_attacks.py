"""What a hostile client can send to the pages, with a control that shows the attack is real.

Rows A, B, E and H of the prototype's attack table, plus what the mount must promise.
"""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from tests.ui.gradio_http import GradioHttp
from tests.ui.serving import Served, serve_app

pytestmark = pytest.mark.integration


@pytest.fixture
def client(served: Served) -> Iterator[GradioHttp]:
    with GradioHttp(served.url) as one:
        yield one


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary.txt"
    path.write_text("the canary sings")
    return path


def file_value(path: Path) -> dict[str, Any]:
    """What the browser would send for an uploaded file; here for one it never uploaded."""
    return {"path": str(path), "meta": {"_type": "gradio.FileData"}}


@pytest.fixture
def unhardened() -> Iterator[GradioHttp]:
    """An echo page mounted as Gradio's documentation says, without our hardening."""
    import gradio as gr

    app = FastAPI()

    async def build() -> None:
        with gr.Blocks(analytics_enabled=False) as pages:
            box = gr.JSON()
            box.change(lambda value: value, box, gr.JSON(), queue=False, api_name="echo")
        gr.mount_gradio_app(app, pages, "/", ssr_mode=False, run_history=False, footer_links=[])

    asyncio.run(build())
    with serve_app(app) as url, GradioHttp(url) as one:
        yield one


def test_control_without_hardening_any_file_can_be_read(unhardened: GradioHttp, canary: Path) -> None:
    # When this fails Gradio has closed the hole itself, and `_harden` may go.
    cached = unhardened.run("echo", [file_value(canary)]).json()["data"][0]["path"]
    assert unhardened.http.get(f"/gradio_api/file={cached}").text == "the canary sings"


@pytest.mark.parametrize(("function", "more"), [("vote", 0), ("save", 3), ("cancel", 0)])
def test_no_unqueued_function_takes_a_file_that_was_not_uploaded(
    client: GradioHttp, canary: Path, function: str, more: int
) -> None:
    answer = client.run(function, [file_value(canary)] * (1 + more))
    assert answer.status_code == 500
    assert str(canary) not in answer.text and "canary" not in answer.text


@pytest.mark.parametrize(("function", "inputs"), [("ask", 1), ("send", 2), ("compare", 5), ("replay", 5)])
def test_no_queued_function_takes_a_file_that_was_not_uploaded(
    client: GradioHttp, canary: Path, function: str, inputs: int
) -> None:
    messages = client.queue(function, [file_value(canary)] * inputs)
    assert messages[-1]["success"] is False
    assert "canary" not in str(messages)


def test_every_mounted_page_counts_as_launched(served: Served, client: GradioHttp) -> None:
    # The private attribute that the file check reads; pinned to gradio 6.31.
    assert client.http.get("/config").json()["version"].startswith("6.31.")
    assert served.world.calls is not None


def test_a_vote_for_a_spoofed_comparison_is_refused(client: GradioHttp, served: Served) -> None:
    before = len([call for call in served.world.calls if call[0] == "vote"])
    sentence = client.run("vote", ["somebody-elses-comparison"]).json()["data"][0]
    assert "expected one that is open for you" in sentence
    votes = [call for call in served.world.calls if call[0] == "vote"][before:]
    assert [(call[1], call[2]) for call in votes] == [("local", "somebody-elses-comparison")]


def test_queued_functions_cannot_be_run_past_the_queue(client: GradioHttp) -> None:
    for name in ("ask", "resume", "send", "compare", "replay"):
        assert client.run(name, []).status_code == 404


@pytest.mark.parametrize("data", [[None], [17], [{"a": 1}], [["x"]], [True]])
def test_values_of_a_wrong_kind_never_show_a_traceback(client: GradioHttp, data: list[Any]) -> None:
    for name in ("vote", "cancel"):
        answer = client.run(name, data)
        assert "Traceback" not in answer.text and ".py" not in answer.text
    messages = client.queue("ask", data)
    assert "Traceback" not in str(messages) and ".py" not in str(messages)


def test_uploads_are_refused(client: GradioHttp) -> None:
    answer = client.http.post("/gradio_api/upload", files={"files": ("x.txt", b"two bytes")})
    assert answer.status_code in (403, 404, 413)


def test_files_of_the_server_are_not_served(client: GradioHttp) -> None:
    for path in ("/etc/passwd", str(Path(__file__)), "http://127.0.0.1:9/x"):
        assert client.http.get(f"/gradio_api/file={path}").status_code in (403, 404)


def test_pages_hold_no_state_and_no_connection_for_life(client: GradioHttp) -> None:
    # With a gr.State every tab keeps a heartbeat open: the sixth tab never loads, and a stop hangs.
    assert client.config["connect_heartbeat"] is False
    assert not [one for one in client.config["components"] if one["type"] == "state"]


def test_error_texts_stay_on_the_server(client: GradioHttp) -> None:
    assert client.config["show_error"] is False
    assert client.config["run_history"] is False
    assert client.config["footer_links"] == []
    assert client.config["analytics_enabled"] is False


def test_the_api_page_lists_nothing(client: GradioHttp) -> None:
    listed = client.http.get("/gradio_api/info")
    assert listed.status_code == 404 or listed.json()["named_endpoints"] == {}


@pytest.mark.parametrize("page", ["/", "/chat", "/compare", "/rounds"])
def test_serving_a_page_looks_up_no_foreign_name(
    client: GradioHttp, page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = socket.getaddrinfo

    def watched(host: Any, *rest: Any, **named: Any) -> Any:
        asked.append(str(host))
        return real(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    html = client.http.get(page).text
    assert "DPO Studio" in html
    assert not [host for host in asked if not host.startswith(("127.", "localhost"))]
    assert "fonts.googleapis" not in html
