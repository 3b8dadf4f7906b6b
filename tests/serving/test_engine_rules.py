"""The engine's promises, over a fake model of uniform logits: no weights, no tokenizer."""

from collections.abc import Callable, Mapping, Sequence

import torch

from dpo_studio.domain.chat import GenerationRequest, Message, SamplingParams
from dpo_studio.modeling.adapter_files import LoraPair
from dpo_studio.serving.engine import STEP_FAILED, Engine, EngineLimits
from dpo_studio.serving.wire import CallFailed, Delta, Done, Event, Finished, RequestFailed
from tests.serving.harness import ask

VOCABULARY = 64
EOS = 1
PAIRS: Mapping[str, LoraPair] = {}


class FakeRunner:
    """Every token is equally likely; `broken` may raise or return something else."""

    num_rows = 4
    max_length = 50

    def __init__(self) -> None:
        self.broken: Callable[[Sequence[int]], torch.Tensor | None] = lambda _slots: None
        self.positions: list[Sequence[int]] = []
        self.prefills: list[tuple[int, int]] = []

    def prefill(self, ids: Sequence[int], start: int, slot: int) -> torch.Tensor:
        self.prefills.append((start, len(ids)))
        return self._logits([slot])

    def place(self, rows: list[int], length: int) -> None:
        pass

    def decode(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> torch.Tensor:
        assert len(tokens) == len(positions) == len(slots) <= self.num_rows
        self.positions.append(positions)
        return self._logits(slots)

    def move(self, source: int, target: int, length: int) -> None:
        pass

    def _logits(self, slots: Sequence[int]) -> torch.Tensor:
        broken = self.broken(slots)
        if broken is not None:
            return broken
        logits = torch.zeros(len(slots), VOCABULARY)
        logits[:, EOS] = float("-inf")
        return logits


class FakeFormat:
    """One character, one token."""

    eos_ids = frozenset({EOS})

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        return [2] * len(messages[-1].content)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(32 + token) for token in ids)

    def is_hidden(self, token: int) -> bool:
        return token == EOS


class FakeSlots:
    num_slots = 2

    def __init__(self) -> None:
        self.written: list[int] = []

    def check(self, pairs: Mapping[str, LoraPair]) -> None:
        pass

    def write(self, slot: int, _pairs: Mapping[str, LoraPair]) -> None:
        self.written.append(slot)


class Rig:
    def __init__(self, **limits: int) -> None:
        self.runner, self.slots = FakeRunner(), FakeSlots()
        self.events: list[Event] = []
        self.engine = Engine(
            self.runner,
            self.slots,
            FakeFormat(),
            limits=EngineLimits(**limits),
            emit=self.events.append,
            draw_seed=lambda: 7,
        )

    def run(self, *requests: GenerationRequest) -> None:
        for request in requests:
            self.engine.submit(request)
        while not self.engine.is_idle:
            self.engine.step()

    def texts(self, request: GenerationRequest) -> list[str]:
        mine = [e for e in self.events if isinstance(e, Finished) and e.request_id == request.request_id]
        return [event.completion.text for event in sorted(mine, key=lambda event: event.index)]

    def errors(self) -> list[RequestFailed | CallFailed]:
        return [event for event in self.events if isinstance(event, (RequestFailed, CallFailed))]


def sampled(seed: int | None = 3, temperature: float = 1.0, max_tokens: int = 20) -> SamplingParams:
    return SamplingParams(temperature=temperature, seed=seed, max_tokens=max_tokens)


def test_two_samples_of_a_prompt_differ() -> None:
    # 20 uniform tokens out of 63: equal by chance once in 10^36 runs.
    rig, request = Rig(), ask("hello", sampling=sampled(), n=2)
    rig.run(request)
    first, second = rig.texts(request)
    assert first != second


def test_a_seed_repeats_and_another_does_not() -> None:
    rig = Rig()
    same, again, other = (ask("hello", sampling=sampled(seed), n=2) for seed in (3, 3, 4))
    rig.run(same)
    rig.run(again)
    rig.run(other)
    assert rig.texts(same) == rig.texts(again) != rig.texts(other)


def test_company_in_the_batch_changes_nothing() -> None:
    alone, together = Rig(), Rig()
    request, twin = ask("hello", sampling=sampled()), ask("hello", sampling=sampled())
    alone.run(request)
    together.run(ask("other", sampling=sampled(9), n=2), twin, ask("third", sampling=sampled(None, 0.5)))
    assert alone.texts(request) == together.texts(twin)


def test_temperature_zero_ignores_the_seed() -> None:
    rig = Rig()
    requests = [ask("hello", sampling=sampled(seed, temperature=0)) for seed in (1, 2)]
    rig.run(*requests)
    assert rig.texts(requests[0]) == rig.texts(requests[1])


def test_without_a_seed_the_engine_draws_one_and_says_which() -> None:
    rig, request = Rig(), ask("hello", sampling=sampled(None))
    rig.run(request)
    (completion,) = [event.completion for event in rig.events if isinstance(event, Finished)]
    assert completion.seed == 7
    rig.run(replay := ask("hello", sampling=sampled(7)))
    assert rig.texts(replay) == rig.texts(request)


def test_deltas_concatenate_to_the_text_of_each_sample() -> None:
    rig, request = Rig(), ask("hello", sampling=sampled(), n=3)
    rig.run(request)
    for index, text in enumerate(rig.texts(request)):
        deltas = [e.text for e in rig.events if isinstance(e, Delta) and e.index == index]
        assert "".join(deltas) == text
        assert len(text) == 20


def test_samples_share_one_prefill_in_chunks() -> None:
    rig = Rig(prefill_chunk=4)
    rig.run(ask("ten chars!", sampling=sampled(), n=2))
    assert rig.runner.prefills == [(0, 4), (4, 4), (8, 2)]


def test_an_answer_stops_where_the_context_is_full() -> None:
    rig, request = Rig(), ask("x" * 45, sampling=sampled(max_tokens=100))
    rig.run(request)
    assert len(rig.texts(request)[0]) == 5
    assert max(max(positions) for positions in rig.runner.positions) < rig.runner.max_length


def test_a_prompt_that_does_not_fit_is_refused_with_the_limit() -> None:
    rig = Rig()
    rig.run(ask("x" * 50))
    (error,) = rig.errors()
    assert error.code == "bad_input"
    assert "fewer than 50 tokens" in error.message and "found 50" in error.message


def test_an_unknown_version_is_not_found() -> None:
    rig = Rig()
    rig.run(ask("hello", version="v9"))
    assert [error.code for error in rig.errors()] == ["not_found"]


def test_a_full_queue_is_busy_and_holds_no_version() -> None:
    rig = Rig(max_waiting=1)
    rig.engine.load(1, "v1", PAIRS)
    for _ in range(3):
        rig.engine.submit(ask("hello", version="v1", sampling=sampled()))
    assert [error.code for error in rig.errors()] == ["busy", "busy"]
    rig.run()
    rig.engine.unload(2, "v1")
    assert rig.engine.loaded == ("base",)


def test_a_cancelled_request_ends_each_sample_once_and_frees_its_rows() -> None:
    rig = Rig()
    request = ask("hello", sampling=sampled(), n=4)
    rig.engine.submit(request)
    for _ in range(3):
        rig.engine.step()
    rig.engine.cancel(request.request_id)
    assert rig.engine.is_idle
    rig.engine.cancel(request.request_id)
    ends = [event for event in rig.events if isinstance(event, Finished)]
    assert sorted(event.index for event in ends) == [0, 1, 2, 3]
    assert {event.completion.finish_reason for event in ends} == {"cancelled"}


def test_a_waiting_and_a_half_read_request_can_be_cancelled() -> None:
    rig = Rig(prefill_chunk=2)
    reading, waiting = ask("hello", n=3), ask("hello", n=2)
    rig.engine.submit(reading)
    rig.engine.submit(waiting)
    rig.engine.step()
    rig.engine.cancel(waiting.request_id)
    rig.engine.cancel(reading.request_id)
    assert rig.engine.is_idle
    assert len([event for event in rig.events if isinstance(event, Finished)]) == 5


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on() -> None:
    rig = Rig()

    def explode(_slots: Sequence[int]) -> None:
        raise RuntimeError("kernel")

    first = ask("hello", sampling=sampled(), n=2)
    rig.engine.submit(first)
    rig.engine.step()
    rig.runner.broken = explode
    rig.engine.step()
    assert rig.errors() == [RequestFailed(first.request_id, "engine_unavailable", STEP_FAILED)]
    rig.runner.broken = lambda _slots: None
    rig.run(second := ask("hello", sampling=sampled()))
    assert rig.texts(second)


def test_out_of_memory_costs_the_background_first() -> None:
    rig = Rig(reserved_rows=1)
    live = ask("hello", sampling=sampled(), n=2)
    background = ask("hello", sampling=sampled(), priority="background")
    rig.engine.submit(live)
    rig.engine.submit(background)
    rig.engine.step()
    rig.engine.step()

    def starve(slots: Sequence[int]) -> None:
        if len(slots) > 2:
            raise torch.OutOfMemoryError

    rig.runner.broken = starve
    rig.run()
    assert [error.request_id for error in rig.errors()] == [background.request_id]  # type: ignore[union-attr]
    assert len(rig.texts(live)) == 2


def test_a_version_that_computes_nan_fails_alone() -> None:
    rig = Rig()
    rig.engine.load(1, "v1", PAIRS)
    rig.runner.broken = lambda slots: torch.tensor(
        [[float("nan") if slot >= 0 else 0.0] * VOCABULARY for slot in slots]
    )
    sound, broken = ask("hello", sampling=sampled()), ask("hello", version="v1", n=2)
    rig.run(sound, broken)
    (error,) = rig.errors()
    assert isinstance(error, RequestFailed)
    assert error.request_id == broken.request_id
    assert "v1 computes numbers that are not finite" in error.message
    assert len(rig.texts(sound)) == 1


def test_a_load_waits_until_a_slot_is_idle() -> None:
    rig = Rig()
    requests = []
    for call, version in enumerate(["v1", "v2"]):
        rig.engine.load(call, version, PAIRS)
        requests.append(ask("hello", version=version, sampling=sampled()))
        rig.engine.submit(requests[-1])
    rig.engine.load(2, "v3", PAIRS)
    assert rig.engine.loaded == ("base", "v1", "v2")
    rig.engine.cancel(requests[0].request_id)
    assert rig.engine.loaded == ("base", "v2", "v3")
    assert [event.call for event in rig.events if isinstance(event, Done)] == [0, 1, 2]


def test_a_waiting_load_that_is_unloaded_is_answered() -> None:
    rig = Rig()
    for call, version in enumerate(["v1", "v2"]):
        rig.engine.load(call, version, PAIRS)
        rig.engine.submit(ask("hello", version=version, sampling=sampled()))
    rig.engine.load(2, "v3", PAIRS)
    rig.engine.unload(3, "v3")
    assert [(error.call, error.code) for error in rig.errors()] == [(2, "not_found")]  # type: ignore[union-attr]


def test_an_unloaded_version_finishes_what_it_began_and_then_frees_its_slot() -> None:
    rig = Rig()
    rig.engine.load(0, "v1", PAIRS)
    request = ask("hello", version="v1", sampling=sampled())
    rig.engine.submit(request)
    rig.engine.step()
    rig.engine.unload(1, "v1")
    assert list(rig.engine.loaded) == ["base"]
    rig.run()
    assert len(rig.texts(request)[0]) == 20
    rig.engine.load(2, "v2", PAIRS)
    rig.engine.load(3, "v3", PAIRS)
    assert list(rig.engine.loaded) == ["base", "v2", "v3"]


def test_loading_a_loaded_version_writes_nothing() -> None:
    rig = Rig()
    rig.engine.load(0, "v1", PAIRS)
    rig.engine.load(1, "v1", PAIRS)
    assert rig.slots.written == [0]
    assert [event.call for event in rig.events if isinstance(event, Done)] == [0, 1]


def test_failures_are_counted_until_a_step_goes_well() -> None:
    rig = Rig()

    def explode(_slots: Sequence[int]) -> None:
        raise RuntimeError("kernel")

    rig.runner.broken = explode
    rig.run(ask("hello"), ask("hello"))
    assert rig.engine.num_failures == 2
    rig.runner.broken = lambda _slots: None
    rig.run(ask("hello"))
    assert rig.engine.num_failures == 0
