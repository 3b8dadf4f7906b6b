"""ComparisonMaker: from a prompt to a stored comparison of two samples of the live version.

No transaction is open while the model writes. Nothing is stored of a comparison whose writing was cut
off: there is no half comparison to vote on. Sides are drawn here, on the server, before the first token.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from dpo_studio.domain.chat import (
    ChatEngine,
    Completion,
    Message,
    Priority,
    SamplingParams,
    check_conversation,
)
from dpo_studio.errors import EngineUnavailable
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.generation import SampleCollector, stream_samples
from dpo_studio.services.views import ComparisonView
from dpo_studio.store import comparisons
from dpo_studio.store.comparisons import NewComparison, NewResponse
from dpo_studio.store.database import Database, new_id

Source = Literal["queue", "own", "api"]
HOTTER = 0.2
"""Added to the temperature when both samples came out the same; such a pair teaches nothing."""


@dataclass(frozen=True, slots=True)
class ComparisonOrder:
    """What to make, for whom."""

    messages: tuple[Message, ...]
    labeler: str
    source: Source
    prompt_id: str | None = None
    priority: Priority = "live"
    is_shown: bool = True
    """Whether somebody is watching it being written; else it waits as ready."""


class ComparisonMaker:
    """Makes one comparison per call; holds no state between calls."""

    def __init__(
        self,
        database: Database,
        engine: ChatEngine,
        deployment: DeploymentService,
        *,
        sampling: SamplingParams,
        now: Callable[[], datetime],
        random_source: random.Random,
    ) -> None:
        self._database = database
        self._engine = engine
        self._deployment = deployment
        self._sampling = sampling
        self._now = now
        self._random = random_source

    async def make(self, order: ComparisonOrder) -> AsyncGenerator[ComparisonView, None]:
        """Yield the growing comparison; the last view is `ready` and stored.

        Two equal samples are drawn once more, hotter. Raises EngineUnavailable, BadInput, Busy.
        """
        order = replace(order, messages=check_conversation(order.messages))
        version = await self._deployment.ensure_loaded("live")
        comparison_id = new_id()
        # Sample 0 is drawn from one seed stream and sample 1 from another, so which one stands left is
        # decided apart from how it was sampled.
        sides = (0, 1) if self._random.random() < 0.5 else (1, 0)
        view = ComparisonView(comparison_id, order.messages, "", "", False, order.source)
        yield view
        for temperature in (self._sampling.temperature, self._sampling.temperature + HOTTER):
            sampling = replace(self._sampling, temperature=temperature, seed=self._random.getrandbits(48))
            collector = SampleCollector(version, 2)
            parts = stream_samples(self._engine, order.messages, version, sampling, 2, order.priority)
            async with aclosing(parts):
                async for part in parts:
                    collector.add(part)
                    left, right = (collector.texts[side] for side in sides)
                    yield replace(view, a=left, b=right)
            first, second = (collector.completions[side] for side in sides)
            if first is None or second is None:
                raise EngineUnavailable("The model ended before both answers were complete; please try again")
            if first.text.strip() != second.text.strip():
                break
        assert first is not None and second is not None
        await asyncio.to_thread(self._store, comparison_id, order, first, second, sampling)
        yield replace(view, a=first.text, b=second.text, ready=True)

    def _store(
        self,
        comparison_id: str,
        order: ComparisonOrder,
        a: Completion,
        b: Completion,
        sampling: SamplingParams,
    ) -> None:
        new = NewComparison(
            id=comparison_id,
            messages=order.messages,
            labeler=order.labeler,
            source=order.source,
            prompt_id=order.prompt_id,
            status="shown" if order.is_shown else "ready",
            a=NewResponse.of(a, sampling),
            b=NewResponse.of(b, sampling),
        )
        with self._database.write() as session:
            if order.is_shown:
                comparisons.put_back_shown(order.labeler, session=session)
            comparisons.add_comparison(new, now=self._now(), session=session)
