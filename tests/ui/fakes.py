"""A studio made of believable pretence: no model, no database, same promises as the real services.

Answers come word by word from a small generator whose taste depends on the version (later versions are
shorter and end with a question), rounds train in seconds. Everything is deterministic given the seed, and
`word_s` and `step_s` set the speed, 0 for unit tests.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, fields, replace
from types import SimpleNamespace
from typing import Any

from dpo_studio.domain.chat import EngineStatus, Message, SamplingParams, check_conversation
from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import StepProgress
from dpo_studio.errors import Conflict, EngineUnavailable, NotFound
from dpo_studio.services.views import (
    ComparisonView,
    GenerationView,
    LabelProgress,
    RoundView,
    ScheduleView,
    VersionView,
    VoteView,
)
from dpo_studio.settings import Settings
from tests.fakes import FakeTraining
from tests.ui.fake_rounds import FakeRounds

READY = EngineStatus(
    state="ready", model="starter", device="cpu", dtype="float32", context_length=512, loaded=("base",)
)
SCHEDULE = ScheduleView(True, 5, 30, "auto")
QUEUE = (
    "What should I cook tonight with rice and eggs?",
    "Help me plan a quiet weekend at home.",
    "My basil keeps wilting. What am I doing wrong?",
    "Write two lines to cheer up a tired friend.",
    "What is a good gift for a neighbour who likes tea?",
    "How do I pack for three days by the sea?",
)

_OPENERS = ("Sure thing!", "Happy to help.", "Good question.", "Of course.", "Let me think.")
_POINTS = (
    "Start with what you already have and keep it simple.",
    "A short list helps: pick **three** things and drop the rest.",
    "Most people forget to rest between the steps, so plan a pause.",
    "Warm water, a little patience and a clean cloth do most of the work.",
    "If it feels like too much, halve it and see how the first half goes.",
    "Ask someone who did it last week; they remember the small traps.",
)
_LIST = "\n\n- first, choose the place\n- then set a time\n- last, write it down\n\n"
_CLOSINGS = ("Shall we go through it together?", "Would you like a shorter version?", "What would you try?")


def answer_text(prompt: str, version: str, seed: int) -> str:
    """One answer of `version`, always the same for the same three."""
    draw = random.Random(f"{prompt}/{version}/{seed}")
    number = 0 if version == "base" else int(version[1:])
    points = draw.sample(_POINTS, max(1, 4 - number))
    body = " ".join(points)
    if draw.random() < 0.3:
        body += _LIST + draw.choice(_POINTS)
    closing = f" {draw.choice(_CLOSINGS)}" if draw.random() < 0.3 + 0.3 * number else ""
    return f"{draw.choice(_OPENERS)} {body}{closing}"


@dataclass
class World:
    """What the fake services share: the truth that the database would hold."""

    word_s: float = 0.0
    step_s: float = 0.0
    live: str = "base"
    versions: list[VersionView] = field(default_factory=list)
    rounds: list[RoundView] = field(default_factory=list)
    steps: dict[int, list[StepProgress]] = field(default_factory=dict)
    schedule: ScheduleView = SCHEDULE
    new_pairs: int = 0
    engine: EngineStatus = READY
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    """Every service call that handlers made, in order."""
    on_call: Callable[[str], None] = lambda name: None  # noqa: ARG005
    """Told the name of every call, in the thread that makes it."""
    training: FakeTraining = field(default_factory=FakeTraining)
    is_cancelling_slowly: bool = False
    """Whether a cancelled round takes a moment to end, as real ones do."""
    fail_with: Exception | None = None
    """Raised by the next service call, once."""
    num_comparisons: int = 0
    open: ComparisonView | None = None
    """Shown and not yet judged."""
    votes: list[tuple[VoteView, ComparisonView]] = field(default_factory=list)

    def reset(self) -> None:
        """As new, with its speeds kept."""
        fresh = World(self.word_s, self.step_s)
        for one in fields(World):
            setattr(self, one.name, getattr(fresh, one.name))

    def called(self, *call: Any) -> None:
        self.calls.append(call)
        self.on_call(call[0])
        error, self.fail_with = self.fail_with, None
        if error is not None:
            raise error
        if self.engine.state != "ready" and call[0] in ("stream_next", "stream"):
            raise EngineUnavailable(self.engine.detail or "The model is still loading; this takes a moment")


async def stream_texts(world: World, texts: Sequence[str]) -> AsyncGenerator[tuple[str, ...], None]:
    """Prefixes of all texts, a word at a time, finished together with the longest."""
    words = [text.split(" ") for text in texts]
    for count in range(1, max(len(row) for row in words) + 1):
        await asyncio.sleep(world.word_s)
        yield tuple(" ".join(row[:count]) for row in words)


class FakeLabeling:
    """Comparisons of one labeler, oldest first; the last unjudged shown one is open."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def stream_next(
        self, labeler: str, messages: tuple[Message, ...] | None = None, *, source: str = "own"
    ) -> AsyncGenerator[ComparisonView, None]:
        self.world.called("stream_next", labeler, messages)
        if messages is None and self.world.open is not None:
            yield self.world.open
            return
        self.world.num_comparisons += 1
        number = self.world.num_comparisons
        queued = (Message("user", QUEUE[number % len(QUEUE)]),)
        conversation = check_conversation(messages) if messages else queued
        asked = conversation[-1].content
        texts = [answer_text(asked, self.world.live, seed) for seed in (2 * number, 2 * number + 1)]
        view = ComparisonView(f"comparison-{number}", conversation, "", "", False, source)
        yield view
        async with aclosing(stream_texts(self.world, texts)) as parts:
            async for a, b in parts:
                view = replace(view, a=a, b=b)
                yield view
        self.world.open = replace(view, ready=True)
        yield self.world.open

    def vote(self, labeler: str, comparison_id: str, choice: Choice, **extra: Any) -> VoteView:
        self.world.called("vote", labeler, comparison_id, choice, extra)
        for given, _ in self.world.votes:
            if given.comparison_id == comparison_id and given.choice == choice.value:
                return replace(given, is_new=False)
        if self.world.open is None or self.world.open.id != comparison_id:
            raise NotFound(f"comparison: expected one that is open for you, found {comparison_id[:40]!r}")
        receipt = VoteView(
            f"vote-{len(self.world.votes)}",
            comparison_id,
            choice.value,
            self.world.live,
            self.world.live,
            True,
        )
        self.world.votes.append((receipt, self.world.open))
        self.world.open = None
        self.world.new_pairs += choice in (Choice.A, Choice.B)
        return receipt

    def undo(self, labeler: str, vote_id: str | None = None) -> ComparisonView:
        self.world.called("undo", labeler, vote_id)
        if not self.world.votes:
            raise Conflict("There is no vote to undo")
        receipt, view = self.world.votes.pop()
        self.world.new_pairs -= receipt.choice in ("a", "b")
        self.world.open = view
        return view

    def progress(self, labeler: str) -> LabelProgress:
        self.world.called("progress", labeler)
        count = len(self.world.votes)
        return LabelProgress(
            count, 140 + count, 412 + count, self.world.new_pairs, self.world.schedule.min_new_pairs, 3
        )


class FakeGeneration:
    """Answers of any known version."""

    def __init__(self, world: World) -> None:
        self.world = world

    async def stream(
        self, messages: Sequence[Message], *, version: str, sampling: SamplingParams, n: int = 1
    ) -> AsyncGenerator[GenerationView, None]:
        self.world.called("stream", tuple(messages), version, sampling)
        conversation = check_conversation(messages)
        name = self.world.live if version == "live" else version
        if name != "base" and name not in {known.name for known in self.world.versions}:
            raise NotFound(f"version: expected live, base or a published version, found {name[:40]!r}")
        seed = sampling.seed if sampling.seed is not None else 7
        text = answer_text(conversation[-1].content, name, seed)
        yield GenerationView(("",) * n, name, False)
        async with aclosing(stream_texts(self.world, [text])) as parts:
            async for (part,) in parts:
                yield GenerationView((part,), name, False)
        yield GenerationView((text,), name, True, (len(text.split()),), ("stop",), seed, 12)


class FakeDeployment:
    """Base and whatever the fake rounds published."""

    def __init__(self, world: World) -> None:
        self.world = world

    def live(self) -> str:
        return self.world.live

    def versions(self) -> list[VersionView]:
        self.world.called("versions")
        base = VersionView("base", None, None, False, True, 0, None)
        return [replace(one, is_live=one.name == self.world.live) for one in [base, *self.world.versions]]

    async def promote(self, name: str, *, actor: str) -> str:
        self.world.called("promote", name, actor)
        if name not in {known.name for known in self.versions()}:
            raise NotFound(f"version: expected live, base or a published version, found {name[:40]!r}")
        self.world.live = name
        return name

    async def rollback(self, *, actor: str) -> str:
        self.world.called("rollback", actor)
        if self.world.live == "base":
            raise Conflict("Nothing to roll back to: base is live already")
        number = int(self.world.live[1:])
        self.world.live = f"v{number - 1}" if number > 1 else "base"
        return self.world.live


def fake_studio(world: World, settings: Settings) -> Any:
    """Something with the attributes of `Studio` that pages and routes use."""
    return SimpleNamespace(
        world=world,
        settings=settings,
        engine=SimpleNamespace(status=world.engine),
        data=None,
        labeling=FakeLabeling(world),
        generation=FakeGeneration(world),
        deployment=FakeDeployment(world),
        rounds=FakeRounds(world),
    )
