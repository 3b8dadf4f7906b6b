"""GenerationService: answers from any version, for chat, compare and the API.

Holds nothing and stores nothing; every stream names the one version that wrote it.
"""

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from dpo_studio.domain.chat import (
    ChatEngine,
    Completion,
    GenerationRequest,
    Message,
    Priority,
    SamplingParams,
    TextDelta,
    check_conversation,
)
from dpo_studio.errors import BadInput, EngineUnavailable
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.views import GenerationView

MAX_SAMPLES = 8


class GenerationService:
    """Streams samples of a version, loading it first when it is not resident."""

    def __init__(self, engine: ChatEngine, deployment: DeploymentService) -> None:
        self._engine = engine
        self._deployment = deployment

    async def stream(
        self, messages: Sequence[Message], *, version: str, sampling: SamplingParams, n: int = 1
    ) -> AsyncGenerator[GenerationView, None]:
        """Yield growing texts; the last view has `done`. `version` may be "live".

        "live" is resolved once, here: a swap meanwhile does not change who answers.
        """
        conversation = check_conversation(messages)
        if not 1 <= n <= MAX_SAMPLES:
            raise BadInput(f"n: expected 1 to {MAX_SAMPLES}, found {n}")
        name = await self._deployment.ensure_loaded(version)
        collector = SampleCollector(name, n)
        yield collector.view()
        async with aclosing(stream_samples(self._engine, conversation, name, sampling, n)) as parts:
            async for part in parts:
                collector.add(part)
                yield collector.view()
        if not collector.is_done:
            raise EngineUnavailable("The model ended before its answer was complete; please ask again")

    async def generate(
        self, messages: Sequence[Message], *, version: str, sampling: SamplingParams, n: int = 1
    ) -> GenerationView:
        """The finished answers."""
        async with aclosing(self.stream(messages, version=version, sampling=sampling, n=n)) as views:
            view = [view async for view in views][-1]
        assert view.done
        return view


class SampleCollector:
    """Puts a request's interleaved parts together. `completions[i]` is None until sample i ended."""

    def __init__(self, version: str, n: int) -> None:
        self.version = version
        self.texts = [""] * n
        self.completions: list[Completion | None] = [None] * n

    def add(self, part: "SamplePart") -> None:
        index, text, completion = part
        self.texts[index] = completion.text if completion else self.texts[index] + text
        self.completions[index] = completion

    @property
    def is_done(self) -> bool:
        return all(completion is not None for completion in self.completions)

    def view(self) -> GenerationView:
        finished = [completion for completion in self.completions if completion]
        return GenerationView(
            texts=tuple(self.texts),
            version=self.version,
            done=self.is_done,
            num_tokens=tuple(len(completion.token_ids) for completion in finished),
            finish_reasons=tuple(completion.finish_reason for completion in finished),
            seed=finished[0].seed if finished else None,
            num_prompt_tokens=finished[0].num_prompt_tokens if finished else 0,
        )


SamplePart = tuple[int, str, Completion | None]
"""(sample index, new text, the completion when it has ended)."""


async def stream_samples(
    engine: ChatEngine,
    messages: tuple[Message, ...],
    version: str,
    sampling: SamplingParams,
    n: int,
    priority: Priority = "live",
) -> AsyncGenerator[SamplePart, None]:
    """One engine request as plain tuples. Closing it cancels the request."""
    request = GenerationRequest(secrets.token_hex(16), messages, version, sampling, n, priority)
    async with aclosing(engine.stream(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                yield event.index, event.text, None
            else:
                yield event.index, "", event.completion
