"""Versions come and go under load; nobody's answer changes."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_studio.domain.chat import GenerationRequest, SamplingParams
from dpo_studio.errors import ModelError
from dpo_studio.modeling.adapter_files import read_adapter
from tests.models import make_tiny_adapter, make_tiny_model
from tests.serving.harness import Rig, ask, make_rig

WORDS = ("hello", "dinner with rice", "how are you today? I am fine", "beans")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("swap") / "model")


@pytest.fixture(scope="module")
def adapters(folder: Path) -> dict[str, Path]:
    return {f"v{i}": make_tiny_adapter(folder.parent / f"v{i}", folder, i, rank=4 * i) for i in (1, 2, 3)}


@pytest.fixture(scope="module")
def alone(folder: Path, adapters: dict[str, Path]) -> Rig:
    """An engine that answers one request at a time: what each answer should be."""
    rig = make_rig(folder)
    for version, path in adapters.items():
        rig.load(version, path)
    return rig


def greedy(word: int, length: int, version: str) -> GenerationRequest:
    return ask(WORDS[word], sampling=SamplingParams(temperature=0, max_tokens=length), version=version)


def expected(alone: Rig, request: GenerationRequest) -> tuple[int, ...]:
    """Ids of the same request, asked when nobody else asks."""
    twin = ask(request.messages[0].content, sampling=request.sampling, version=request.version)
    return alone.ask(twin)[0].token_ids


def test_answers_in_flight_are_the_same_with_and_without_a_swap(
    folder: Path, adapters: dict[str, Path], alone: Rig
) -> None:
    rig = make_rig(folder, num_slots=2)
    rig.load("v1", adapters["v1"])
    early = [greedy(word, 30, version) for word, version in enumerate(["base", "v1", "v1"])]
    for request in early:
        rig.engine.submit(request)
    for _ in range(8):
        rig.engine.step()
    rig.load("v2", adapters["v2"], call=5)
    rig.engine.unload(6, "v1")
    late = [greedy(word, 30, "v2") for word in range(3)]
    for request in late:
        rig.engine.submit(request)
    rig.run()
    assert rig.engine.loaded == ("base", "v2")
    for request in (*early, *late):
        assert rig.answers(request)[0].token_ids == expected(alone, request)


def test_a_larger_rank_keeps_the_versions_that_are_loaded(
    folder: Path, adapters: dict[str, Path], alone: Rig
) -> None:
    rig = make_rig(folder)
    for version in ("v1", "v3"):
        rig.load(version, adapters[version])
    for version in ("v1", "v3"):
        request = greedy(1, 12, version)
        assert rig.ask(request)[0].token_ids == expected(alone, request)


def test_a_reused_slot_forgets_the_version_before(
    folder: Path, adapters: dict[str, Path], alone: Rig
) -> None:
    rig = make_rig(folder, num_slots=1)
    rig.load("v3", adapters["v3"])
    rig.load("v1", adapters["v1"])
    assert rig.engine.loaded == ("base", "v1")
    request = greedy(2, 12, "v1")
    assert rig.ask(request)[0].token_ids == expected(alone, request)


def test_text_that_breaks_the_tokenizer_is_bad_input_and_the_engine_goes_on(folder: Path) -> None:
    rig = make_rig(folder)
    rig.engine.submit(ask("half a surrogate pair: \ud83d"))
    (failure,) = rig.failures()
    assert failure.code == "bad_input"
    assert rig.ask(ask("hello"))[0].token_ids


def test_an_adapter_for_another_model_is_refused_before_it_is_written(alone: Rig, tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "model", "llama", hidden_size=64)
    _, wrong_shape = read_adapter(make_tiny_adapter(tmp_path / "a", other))
    with pytest.raises(ModelError, match=r"expected 64 → 32 features .* found 64 → 64"):
        alone.slots.check(wrong_shape)
    gpt2 = make_tiny_model(tmp_path / "gpt2", "gpt2")
    _, wrong_names = read_adapter(make_tiny_adapter(tmp_path / "b", gpt2))
    with pytest.raises(ModelError, match="none of them"):
        alone.slots.check(wrong_names)


arrivals = st.tuples(
    st.integers(0, 3),  # which prompt
    st.integers(1, 25),  # tokens
    st.sampled_from(["base", "v1", "v2", "v3"]),
    st.integers(0, 6),  # steps before the next arrival
    st.sampled_from([None, None, None, 2, 9]),  # cancelled after so many steps
)


@given(st.lists(arrivals, min_size=1, max_size=9))
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_whoever_comes_and_goes_each_greedy_answer_is_the_one_made_alone(
    shared: Rig, alone: Rig, plan: list[tuple[int, int, str, int, int | None]]
) -> None:
    requests: list[GenerationRequest] = []
    cancels: dict[int, str] = {}
    clock = 0
    for word, length, version, pause, cancelled in plan:
        request = greedy(word, length, version)
        shared.engine.submit(request)
        requests.append(request)
        if cancelled is not None:
            cancels[clock + cancelled] = request.request_id
        for _ in range(pause):
            shared.engine.step()
            clock += 1
            if clock in cancels:
                shared.engine.cancel(cancels.pop(clock))
    for request_id in cancels.values():
        shared.engine.cancel(request_id)
    shared.run()
    for request in requests:
        (answer,) = shared.answers(request)
        whole = expected(alone, request)
        if answer.finish_reason == "cancelled":
            assert answer.token_ids == whole[: len(answer.token_ids)]
        else:
            assert answer.token_ids == whole
    assert shared.failures() == []


@pytest.fixture(scope="module")
def shared(folder: Path, adapters: dict[str, Path]) -> Rig:
    """An engine of few rows and small chunks, so that requests wait, join and move rows."""
    rig = make_rig(folder, max_rows=4, prefill_chunk=7)
    for version, path in adapters.items():
        rig.load(version, path)
    return rig
