"""An engine over a real tiny model, driven step by step in the test's own thread."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dpo_studio.domain.chat import Completion, GenerationRequest, Message, SamplingParams
from dpo_studio.modeling.adapter_files import read_adapter
from dpo_studio.modeling.base_model import BaseModel, load_base
from dpo_studio.serving.adapter_slots import AdapterSlots
from dpo_studio.serving.build import build_runner
from dpo_studio.serving.engine import Engine, EngineLimits
from dpo_studio.serving.wire import CallFailed, Delta, Done, Event, Finished, RequestFailed

GREEDY = SamplingParams(temperature=0, max_tokens=12)


def ask(
    text: str, *, sampling: SamplingParams = GREEDY, version: str = "base", n: int = 1, **rest: Any
) -> GenerationRequest:
    """A request with a fresh id."""
    return GenerationRequest(f"r{next(_ids)}", (Message("user", text),), version, sampling, n, **rest)


@dataclass
class Rig:
    """The engine and everything it said."""

    base: BaseModel
    slots: AdapterSlots
    engine: Engine
    note: str
    events: list[Event] = field(default_factory=list)

    def load(self, version: str, folder: Path, call: int = 0) -> None:
        _, pairs = read_adapter(folder)
        self.slots.check(pairs)
        self.engine.load(call, version, pairs)

    def run(self, max_steps: int = 2000) -> None:
        """Step until nothing is left to do."""
        for _ in range(max_steps):
            if self.engine.is_idle:
                return
            self.engine.step()
        raise AssertionError("the engine did not come to rest")

    def answers(self, request: GenerationRequest) -> list[Completion]:
        """The completions of a request by sample, each of which must have ended exactly once."""
        found = [e for e in self.events if isinstance(e, Finished) and e.request_id == request.request_id]
        assert sorted(event.index for event in found) == list(range(request.n))
        return [event.completion for event in sorted(found, key=lambda event: event.index)]

    def ask(self, request: GenerationRequest) -> list[Completion]:
        """Submit, run to the end, and return the completions."""
        self.engine.submit(request)
        self.run()
        return self.answers(request)

    def failures(self) -> list[RequestFailed | CallFailed]:
        return [event for event in self.events if isinstance(event, (RequestFailed, CallFailed))]

    def done_calls(self) -> list[int]:
        return [event.call for event in self.events if isinstance(event, Done)]

    def text_of(self, request: GenerationRequest, index: int = 0) -> str:
        """All deltas of one sample."""
        mine = [e for e in self.events if isinstance(e, Delta) and e.request_id == request.request_id]
        return "".join(event.text for event in mine if event.index == index)


def make_rig(
    folder: Path,
    *,
    max_rows: int = 8,
    max_context: int = 256,
    num_slots: int = 4,
    dtype: str = "float32",
    **limits: int,
) -> Rig:
    """An engine over the model in `folder`, on the CPU."""
    torch.set_num_threads(1)
    base = load_base(str(folder), device="cpu", dtype=dtype)
    slots = AdapterSlots(base.model, num_slots)
    built = build_runner(base, slots, max_rows=max_rows, max_context=max_context)
    seeds = itertools.count(1000)
    events: list[Event] = []
    engine = Engine(
        built.runner,
        slots,
        base.chat_format(),
        limits=EngineLimits(**limits),
        emit=events.append,
        draw_seed=lambda: next(seeds),
    )
    return Rig(base, slots, engine, built.note, events)


def reference_answer(
    model: Any, prompt_ids: list[int], max_tokens: int, eos_ids: frozenset[int]
) -> list[int]:
    """Greedy ids by transformers' own `generate`."""
    output = model.generate(
        torch.tensor([prompt_ids]),
        attention_mask=torch.ones(1, len(prompt_ids), dtype=torch.long),
        max_new_tokens=max_tokens,
        do_sample=False,
        eos_token_id=sorted(eos_ids),
        pad_token_id=0,
    )
    ids: list[int] = output[0, len(prompt_ids) :].tolist()
    return ids


_ids = itertools.count()
