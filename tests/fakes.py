"""A believable engine without a model: answers differ per seed, version and sample, and can be gated."""

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_studio.domain.chat import (
    Completion,
    EngineEvent,
    EngineStatus,
    GenerationRequest,
    SampleFinished,
    TextDelta,
)
from dpo_studio.domain.round import TrainSettings
from dpo_studio.errors import EngineUnavailable, ModelError
from dpo_studio.services.training_choice import applied, choice_of
from dpo_studio.services.views import TrainingChoice, TrainingView

WORDS = [
    "soup",
    "rain",
    "garden",
    "letter",
    "quiet",
    "morning",
    "basil",
    "candle",
    "river",
    "window",
    "picnic",
    "scarf",
]


class FakeEngine:
    """Implements ChatEngine. `hold()` freezes streams after their first word until `release()`."""

    def __init__(self) -> None:
        self.loaded: list[str] = ["base"]
        self.requests: list[GenerationRequest] = []
        self.refused: dict[str, str] = {}
        self.is_silent = False
        self.is_repeating = 0
        """How many of the next requests answer the same text twice."""
        self._open = asyncio.Event()
        self._open.set()
        self.state = "ready"
        self.model_sha256 = "sha256:model"
        self.num_parameters = 3_000_000

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(
            state=self.state,  # type: ignore[arg-type]
            detail="fake",
            model="fake",
            model_sha256=self.model_sha256 if self.state == "ready" else "",
            tokenizer_sha256="sha256:tokenizer",
            device="cpu",
            dtype="float32",
            context_length=512,
            num_parameters=self.num_parameters,
            loaded=tuple(self.loaded),
        )

    def hold(self) -> None:
        self._open.clear()

    def release(self) -> None:
        self._open.set()

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[EngineEvent, None]:
        if self.state != "ready":
            raise EngineUnavailable("The model is loading")
        assert request.version in self.loaded, f"{request.version} was asked for but is not loaded"
        self.requests.append(request)
        texts = self._answers(request)
        for index, text in enumerate(texts):
            first, _, rest = text.partition(" ")
            yield TextDelta(index, first)
            await self._open.wait()
            await asyncio.sleep(0)
            if rest:
                yield TextDelta(index, f" {rest}")
        for index, text in enumerate(texts):
            ids = tuple(range(len(text.split())))
            seed = request.sampling.seed or 0
            yield SampleFinished(index, Completion(text, ids, request.version, seed, "stop", 7))

    async def load(self, version: str, folder: Path) -> None:
        if version in self.refused:
            raise ModelError(self.refused[version])
        assert folder.name == version
        if version not in self.loaded:
            self.loaded.append(version)

    async def unload(self, version: str) -> None:
        if version in self.loaded:
            self.loaded.remove(version)

    def _answers(self, request: GenerationRequest) -> list[str]:
        if self.is_silent:
            return [""] * request.n
        if self.is_repeating:
            self.is_repeating -= 1
            return ["the same words"] * request.n
        seed = f"{request.sampling.seed}-{request.version}"
        return [
            " ".join(random.Random(f"{seed}-{index}").choices(WORDS, k=5)) + f" {request.version}"
            for index in range(request.n)
        ]


class FakeTraining:
    """The choice of training settings, held in memory; refuses what the real one refuses."""

    def __init__(self) -> None:
        self.preset = choice_of(TrainSettings())
        self.choice = self.preset
        self.actors: list[str] = []

    def view(self) -> TrainingView:
        return TrainingView(self.choice, self.preset)

    def change(self, choice: TrainingChoice, *, actor: str) -> TrainingView:
        applied(choice, TrainSettings())
        self.actors.append(actor)
        self.choice = choice
        return self.view()

    def choose(self, changes: Mapping[str, Any], *, actor: str) -> TrainingView:
        return self.change(replace(self.preset, **changes), actor=actor)

    def reset(self, *, actor: str) -> TrainingView:
        return self.choose({}, actor=actor)
