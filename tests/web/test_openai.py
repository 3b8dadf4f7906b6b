"""The OpenAI-compatible routes, spoken to by OpenAI's own client over a real socket."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dpo_studio.domain.chat import Message
from dpo_studio.web.app import create_app
from tests.web.conftest import mount_page, no_lifespan
from tests.web.fakes import FakeStudio
from tests.web.live import serving

HELLO: Any = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeStudio]]:
    """One server for the module: starting one costs more than most tests here."""
    fake = FakeStudio(tmp_path_factory.mktemp("openai"))
    with serving(create_app(fake.studio, mounts=mount_page, lifespan=no_lifespan)) as url:
        yield url, fake


@pytest.fixture
def fake(server: tuple[str, FakeStudio]) -> FakeStudio:
    _, fake = server
    fake.generation.reset()
    return fake


@pytest.fixture
def live(server: tuple[str, FakeStudio], fake: FakeStudio) -> Iterator[openai.OpenAI]:
    url, behind = server
    assert behind is fake
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_completion_names_the_version_that_wrote_it(live: openai.OpenAI) -> None:
    answer = live.chat.completions.create(model="live", messages=HELLO)
    assert answer.model == "v1"
    assert answer.choices[0].message.content == "v1 says: Hello there"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (
        11,
        4,
        15,
    )
    assert live.chat.completions.create(model="base", messages=HELLO).model == "base"


def test_n_answers_come_in_order(live: openai.OpenAI) -> None:
    answer = live.chat.completions.create(model="v2", messages=HELLO, n=4)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [start + "v2 says: Hello there" for start in ("", "1", "2", "3")]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_parameters_reach_the_model(live: openai.OpenAI, fake: FakeStudio) -> None:
    live.chat.completions.create(
        model="live",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        ],
        seed=5,
        temperature=0.3,
        top_p=0.0,
        max_completion_tokens=17,
        stop=["\n", "END"],
        user="someone",
        presence_penalty=0,
        response_format={"type": "text"},
    )
    messages, sampling, n = fake.generation.requests[0]
    assert messages == (Message("system", "Be brief."), Message("user", "Hello"))
    assert (sampling.seed, sampling.temperature, sampling.max_tokens, n) == (5, 0.3, 17, 1)
    assert sampling.stop == ("\n", "END")
    assert 0 < sampling.top_p < 1e-5


def test_an_answer_may_be_sent_back_as_the_next_turns_history(live: openai.OpenAI) -> None:
    first = live.chat.completions.create(model="live", messages=HELLO).choices[0].message
    history: Any = [*HELLO, first, {"role": "user", "content": "More"}]
    assert live.chat.completions.create(model="live", messages=history).choices[0].message.content


def test_a_stream_concatenates_to_the_whole_answer(live: openai.OpenAI) -> None:
    chunks = list(
        live.chat.completions.create(
            model="live", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
    )
    texts = ["", ""]
    reasons: dict[int, str | None] = {}
    for chunk in chunks:
        assert chunk.model == "v1"
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert texts == ["v1 says: Hello there", "1v1 says: Hello there"]
    assert reasons == {0: "stop", 1: "stop"}
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stream_comes_as_it_is_written(live: openai.OpenAI, fake: FakeStudio) -> None:
    fake.generation.pause_s = 0.2
    started = time.monotonic()
    arrivals = [
        time.monotonic() - started
        for _ in live.chat.completions.create(model="live", messages=HELLO, stream=True)
    ]
    # Four words, 0.2 s apart: the first event is here well before the last.
    assert arrivals[-1] - arrivals[0] > 0.4


def test_closing_a_stream_frees_the_model(live: openai.OpenAI, fake: FakeStudio) -> None:
    fake.generation.pause_s = 0.3
    words: Any = [{"role": "user", "content": "word " * 100}]
    stream = live.chat.completions.create(model="live", messages=words, stream=True)
    next(iter(stream))
    stream.close()
    assert_freed(fake)


def test_leaving_an_unstreamed_request_frees_the_model(
    live: openai.OpenAI, fake: FakeStudio, caplog: pytest.LogCaptureFixture
) -> None:
    fake.generation.pause_s = 0.3
    words: Any = [{"role": "user", "content": "word " * 100}]
    with pytest.raises(openai.APITimeoutError):
        live.with_options(timeout=0.5).chat.completions.create(model="live", messages=words)
    assert_freed(fake)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def assert_freed(fake: FakeStudio) -> None:
    """The generator was closed early, within two seconds."""
    deadline = time.monotonic() + 2
    while fake.generation.num_open and time.monotonic() < deadline:
        time.sleep(0.02)
    assert fake.generation.num_open == 0
    assert fake.generation.num_ended == 0


def test_models_list_live_and_every_version(live: openai.OpenAI) -> None:
    assert [model.id for model in live.models.list()] == ["live", "base", "v1", "v2"]
    assert live.models.retrieve("v1").owned_by == "dpo-studio"
    with pytest.raises(openai.NotFoundError):
        live.models.retrieve("v9")


def test_an_unknown_model_is_a_404_that_names_the_known(live: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match="expected live, base") as caught:
            live.chat.completions.create(model="gpt-4", messages=HELLO, stream=stream)
        assert caught.value.code == "model_not_found"
        assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    "extra",
    [
        {"n": 5},
        {"n": 0},
        {"temperature": 9},
        {"max_tokens": 0},
        {"stop": ["a"] * 5},
        {"seed": -1},
        {"logprobs": True},
        {"presence_penalty": 0.5},
        {"tools": []},
        {"response_format": {"type": "json_object"}},
        {"messages": []},
        {"messages": [{"role": "user", "content": " "}]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}
            ]
        },
    ],
)
def test_what_cannot_be_honoured_is_refused_in_openais_form(
    live: openai.OpenAI, extra: dict[str, Any]
) -> None:
    body = {"model": "live", "messages": HELLO, **extra}
    with pytest.raises(openai.BadRequestError) as caught:
        live.post("/chat/completions", body=body, cast_to=object)
    error = caught.value.body
    assert isinstance(error, dict)
    assert set(error) == {"code", "message", "type", "param"}


def test_a_failure_inside_a_stream_reaches_the_client(live: openai.OpenAI, fake: FakeStudio) -> None:
    fake.generation.fail_after_views = 2
    with pytest.raises(openai.APIError, match="stopped while it was answering"):
        list(live.chat.completions.create(model="live", messages=HELLO, stream=True))


def test_a_failure_before_the_first_word_is_a_status(live: openai.OpenAI, fake: FakeStudio) -> None:
    fake.generation.fail_after_views = 0
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as caught:
            live.chat.completions.create(model="live", messages=HELLO, stream=stream)
        assert caught.value.status_code == 503
    assert fake.generation.num_open == 0


def test_a_50_mb_body_is_refused_for_little_work_over_a_socket(tmp_path: Path) -> None:
    app = create_app(FakeStudio(tmp_path).studio, mounts=mount_page, lifespan=no_lifespan)

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 1_000_000

    with serving(app) as url, httpx.Client(base_url=url) as client:
        for content in (b"x" * 50_000_000, chunks()):
            started = time.process_time()
            answer = client.post("/api/generate", content=content)
            assert answer.status_code == 413
            # Measured 0.3 s of work by client and server together; a wait for the machine does not count.
            assert time.process_time() - started < 1.5
