"""Error bodies are always printable, short and complete; broken answers look broken."""

import json

import pytest
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from dpo_studio.web.errors import ErrorBoundary, error_body, error_response
from dpo_studio.web.requests import StrictModel


def test_a_message_may_quote_anything_and_stays_one_printable_text() -> None:
    message = error_body("/api/x", 422, "bad_input", "found \ud800\x00\x07\u202e" + "x" * 10_000)["error"][
        "message"
    ]
    assert message.startswith("found \u202ex")
    assert len(message) <= 501
    json.dumps(message, ensure_ascii=False).encode()


def test_openai_clients_get_400_and_their_own_keys() -> None:
    assert error_response("/api/x", 422, "bad_input", "no").status_code == 422
    answer = error_response("/v1/x", 422, "bad_input", "no")
    assert answer.status_code == 400
    error = json.loads(bytes(answer.body))["error"]
    assert error == {"code": "bad_input", "message": "no", "type": "invalid_request_error", "param": None}
    assert error_body("/v1/x", 503, "c", "m")["error"]["type"] == "server_error"


@pytest.mark.parametrize(("status", "expected"), [(429, "1"), (503, "1"), (404, None)])
def test_what_may_work_later_says_when(status: int, expected: str | None) -> None:
    assert error_response("/api/x", status, "c", "m").headers.get("Retry-After") == expected


async def test_an_answer_that_breaks_midway_is_cut_and_not_completed() -> None:
    sent: list[Message] = []

    async def breaking(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("midway")

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    with pytest.raises(RuntimeError, match="midway"):
        await ErrorBoundary(breaking)({"type": "http", "path": "/", "method": "GET"}, receive, send)
    assert [message["type"] for message in sent] == ["http.response.start"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_body_takes_a_number_that_is_none(value: float) -> None:
    class Body(StrictModel):
        number: float

    assert Body(number=1.5).number == 1.5
    with pytest.raises(ValidationError):
        Body(number=value)
