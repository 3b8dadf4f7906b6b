"""Every message survives the pipe."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.domain.chat import Completion, EngineStatus, GenerationRequest, Message, SamplingParams
from dpo_studio.errors import BadInput, Busy, EngineUnavailable, ModelError, NotFound
from dpo_studio.serving import wire
from tests.serving.harness import ask

COMPLETION = Completion("hi \n\u2028 é", (1, 2), "v1", 2**48, "stop", 7)
MESSAGES: list[wire.Command | wire.Event] = [
    wire.Start(wire.EngineSettings("starter", chat_template="{{ x }}")),
    wire.Generate(ask("é\n\u2028", sampling=SamplingParams(seed=None, stop=("a", "b")), n=2)),
    wire.Cancel("r1"),
    wire.Load(1, "v1", "/x"),
    wire.Unload(2, "v1"),
    wire.Ping(3),
    wire.Delta("r1", 0, "text"),
    wire.Finished("r1", 1, COMPLETION),
    wire.RequestFailed("r1", "busy", "later"),
    wire.Done(3),
    wire.CallFailed(3, "model", "no"),
    wire.Report(EngineStatus("ready", loaded=("base", "v1"))),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_is_one_line_and_comes_back_equal(message: wire.Command | wire.Event) -> None:
    line = wire.encode(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert wire.decode(line) == message


@given(st.text())
def test_any_text_survives(text: str) -> None:
    request = GenerationRequest("r", (Message("user", text),), "base", SamplingParams())
    assert wire.decode(wire.encode(wire.Generate(request))) == wire.Generate(request)
    assert wire.decode(wire.encode(wire.Delta("r", 0, text))) == wire.Delta("r", 0, text)


@pytest.mark.parametrize("line", [b"Loading weights: 100%\n", b"[]\n", b'{"kind": "Exec"}\n', b"{}\n"])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(BadInput, match="wire: expected"):
        wire.decode(line)


@pytest.mark.parametrize("kind", [BadInput, NotFound, Busy, ModelError, EngineUnavailable])
def test_an_error_keeps_its_class_and_words(kind: type[BadInput]) -> None:
    error = wire.error_from(kind.code, "words")
    assert type(error) is kind and str(error) == "words"


def test_an_unknown_error_code_is_unavailable() -> None:
    assert type(wire.error_from("zzz", "words")) is EngineUnavailable
