"""The serving engine inside this process: many prompts from any version, as fast as the batch allows.

On the starter 45 to 50 answers a CPU-second (about 35 with an adapter), one thread.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from dpo_studio.domain.chat import BASE, Completion, GenerationRequest, Message, SamplingParams
from dpo_studio.modeling.adapter_files import read_adapter
from dpo_studio.modeling.base_model import load_base
from dpo_studio.serving.adapter_slots import AdapterSlots
from dpo_studio.serving.build import build_runner
from dpo_studio.serving.engine import Engine, EngineLimits
from dpo_studio.serving.wire import CallFailed, Event, Finished, RequestFailed

ROWS = 48
"""Answers written at once: 24 give 47 answers a CPU-second, 48 give 50."""
WINDOW = 48
"""Requests submitted ahead; the engine's queue is bounded."""
Conversation = tuple[Message, ...]


class Sampler:
    """One base model and the versions loaded so far."""

    def __init__(self, model: str) -> None:
        # A second thread on a busy core costs more at its barriers than it computes.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
        self.base = load_base(model)
        self._slots = AdapterSlots(self.base.model, 4)
        built = build_runner(self.base, self._slots, max_rows=ROWS, max_context=512)
        self._finished: dict[str, dict[int, Completion]] = {}
        self._calls = 0
        self._engine = Engine(
            built.runner,
            self._slots,
            self.base.chat_format(),
            limits=EngineLimits(max_waiting=2 * WINDOW, reserved_rows=0),
            emit=self._take,
            draw_seed=lambda: 0,
        )

    @property
    def num_parameters(self) -> int:
        """Of the base model."""
        return int(sum(parameter.numel() for parameter in self.base.model.parameters()))

    def load(self, version: str, folder: Path) -> None:
        """Make an adapter folder available under a new name."""
        self._calls += 1
        _, pairs = read_adapter(folder)
        self._engine.load(self._calls, version, pairs)

    def unload(self, version: str) -> None:
        """Forget a version; base stays."""
        if version != BASE:
            self._calls += 1
            self._engine.unload(self._calls, version)

    def answers(
        self,
        prompts: Sequence[Conversation],
        version: str,
        *,
        seed: int,
        n: int = 1,
        temperature: float = 0.9,
        max_tokens: int = 160,
    ) -> list[list[Completion]]:
        """`n` answers to each prompt, in order. Prompt `i` is drawn with seed `seed + i`."""
        self._finished = {str(number): {} for number in range(len(prompts))}
        waiting = list(enumerate(prompts))
        while waiting or not self._engine.is_idle:
            open_requests = sum(n - len(done) > 0 for done in self._finished.values()) - len(waiting)
            while waiting and open_requests < WINDOW:
                number, messages = waiting.pop(0)
                sampling = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed + number)
                self._engine.submit(GenerationRequest(str(number), messages, version, sampling, n))
                open_requests += 1
            self._engine.step()
        return [[self._finished[str(number)][index] for index in range(n)] for number in range(len(prompts))]

    def _take(self, event: Event) -> None:
        assert not isinstance(event, RequestFailed | CallFailed), event
        if isinstance(event, Finished):
            self._finished[event.request_id][event.index] = event.completion
