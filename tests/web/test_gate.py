"""The gate: foreign hosts, foreign pages and big bodies stay outside, and every answer is armoured."""

from collections.abc import AsyncIterator

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpo_studio.web.gate import BODY_LIMIT, IMPORT_LIMIT, SECURITY_HEADERS, Gate
from tests.web.fakes import FakeStudio


@pytest.mark.parametrize("host", ["127.0.0.1:7860", "localhost", "LOCALHOST:80", "[::1]:7860", "127.0.0.1"])
async def test_own_names_pass(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/healthz", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example:7860",
        "127.0.0.1@evil.example",
        "evil.example#127.0.0.1",
        "127.0.0.1/evil",
        "127.0.0.1:notaport",
        "[::1",
        "",
    ],
)
async def test_a_foreign_host_is_refused_on_every_path(client: httpx.AsyncClient, host: str) -> None:
    for path in ("/", "/healthz", "/api/status"):
        answer = await client.get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert answer.json()["error"]["code"] == "misdirected"


async def test_two_host_headers_are_refused(client: httpx.AsyncClient) -> None:
    headers = [("Host", "localhost"), ("Host", "localhost")]
    assert (await client.get("/healthz", headers=headers)).status_code == 400


async def test_a_configured_host_passes() -> None:
    async with gated(echo, hosts=("Studio.Internal",)) as client:
        assert (await client.get("/", headers={"Host": "studio.internal:80"})).status_code == 200
        assert (await client.get("/", headers={"Host": "other.internal"})).status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "http://localhost:7860"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://[::1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_another_origins_page_cannot_act(
    client: httpx.AsyncClient, fake: FakeStudio, headers: dict[str, str]
) -> None:
    for method in ("POST", "DELETE", "PUT", "PATCH"):
        answer = await client.request(method, "/api/versions/base/promote", headers=headers)
        assert answer.status_code == 403
    assert fake.deployment.live() == "v1"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": "http://127.0.0.1:7860"},
        {"Origin": "HTTP://127.0.0.1:7860", "Sec-Fetch-Site": "same-origin"},
    ],
)
async def test_own_pages_and_programs_can_act(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    assert (await client.post("/api/versions/base/promote", headers=headers)).status_code == 200


async def test_a_foreign_page_may_link_here(client: httpx.AsyncClient) -> None:
    assert (await client.get("/", headers={"Sec-Fetch-Site": "cross-site"})).status_code == 200


async def test_a_websocket_of_another_origin_is_closed_before_it_opens() -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"origin", b"https://evil.example")]
    await Gate(unreached)({"type": "websocket", "path": "/", "headers": headers}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


@pytest.mark.parametrize("path", ["/", "/api/status", "/api/rounds/99", "/nothing", "/openapi.json"])
async def test_every_answer_carries_the_security_headers(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    for name, value in SECURITY_HEADERS.items():
        assert answer.headers[name] == value
    assert "img-src 'self' data: blob:" in answer.headers["Content-Security-Policy"]


async def test_pages_are_not_stored_and_hashed_assets_are_kept(client: httpx.AsyncClient) -> None:
    assert (await client.get("/")).headers["Cache-Control"] == "no-store"
    assert (await client.get("/api/status")).headers["Cache-Control"] == "no-store"
    assert "immutable" in (await client.get("/assets/index-abc.js")).headers["Cache-Control"]
    missing = await client.post("/assets/index-abc.js")
    assert "immutable" not in missing.headers["Cache-Control"]


@pytest.mark.parametrize(
    "path",
    [
        "/openapi.json",
        "/gradio_api/openapi.json",
        "/docs",
        "/gradio_api/proxy=http://127.0.0.1/",
        "/monitoring",
    ],
)
async def test_gradios_side_doors_are_closed(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(path)).status_code == 404


async def test_a_declared_big_body_is_refused_unread() -> None:
    async with gated(unreached) as client:
        answer = await client.post("/api/generate", content=b"x" * (BODY_LIMIT + 1))
        assert answer.status_code == 413
        assert "at most 1 MB" in answer.json()["error"]["message"]


@pytest.mark.parametrize("length", ["-1", "1e3", "²", "abc", "9" * 40])
async def test_a_nonsense_length_is_refused(length: str) -> None:
    async with gated(unreached) as client:
        answer = await client.post("/x", headers={b"Content-Length": length.encode("latin-1")})
        assert answer.status_code in (400, 413)


async def test_a_chunked_big_body_is_refused_while_it_comes() -> None:
    pulled = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal pulled
        for _ in range(1000):
            pulled += 1
            yield b"x" * 65_536

    async with gated(echo) as client:
        answer = await client.post("/api/generate", content=chunks())
        assert answer.status_code == 413
    # 17 chunks pass 1 MB; the rest was never asked for.
    assert pulled == 17


async def test_a_chunked_big_body_through_the_real_routes_is_413(client: httpx.AsyncClient) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 65_536

    headers = {"Content-Type": "application/json"}
    answer = await client.post("/api/generate", content=chunks(), headers=headers)
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


async def test_an_app_that_swallows_the_refusal_still_answers_413() -> None:
    async def swallowing(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await echo(scope, receive, send)
        except Exception:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"fine"})

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 65_536

    async with gated(swallowing) as client:
        assert (await client.post("/api/generate", content=chunks())).status_code == 413


@pytest.mark.parametrize("path", ["/api/prompts", "/api/pairs"])
async def test_imports_may_be_bigger_but_not_endless(path: str) -> None:
    async with gated(echo) as client:
        assert (await client.post(path, content=b"x" * (2 * BODY_LIMIT))).status_code == 200
        too_much = {"Content-Length": str(IMPORT_LIMIT + 1)}
        assert (await client.post(path, headers=too_much)).status_code == 413


async def test_a_body_at_the_limit_passes_whole() -> None:
    async with gated(echo) as client:
        answer = await client.post("/api/generate", content=b"x" * BODY_LIMIT)
        assert answer.text == str(BODY_LIMIT)


async def echo(_scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body and answers its size."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def unreached(scope: Scope, _receive: Receive, _send: Send) -> None:
    """Fails the test when the gate lets a request through."""
    raise AssertionError(f"the gate let {scope['path']} through")


def gated(app: ASGIApp, hosts: tuple[str, ...] = ()) -> httpx.AsyncClient:
    """A client of `app` behind a gate."""
    transport = httpx.ASGITransport(app=Gate(app, hosts))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")
