"""Commands that need the model: they start a studio of their own, without pages, and own its storage.

Each refuses while a running studio uses the storage; that studio's pages and API do the same then.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dpo_studio.domain.round import RoundStatus
from dpo_studio.errors import StudioError
from dpo_studio.services import how_trained
from dpo_studio.services.deployment import wait_until_ready
from dpo_studio.services.studio import Studio
from dpo_studio.services.views import RoundView
from dpo_studio.settings import Settings

Say = Callable[[str], None]
ACTOR = "command line"
MODEL_TIMEOUT_S = 1800.0
"""A large model from a slow disk."""
POLL_S = 0.25
_ENDED_WELL = (RoundStatus.PROMOTED, RoundStatus.REJECTED, RoundStatus.WAITING)


class RoundEnded(StudioError):
    """The round ended without a verdict."""

    code = "round_ended"


@asynccontextmanager
async def running_studio(settings: Settings) -> AsyncIterator[Studio]:
    """A studio whose model answers, for the length of the block."""
    # Here and not above: the composition imports the pages, which costs seconds.
    from dpo_studio.composition import build, owned_storage, running

    with owned_storage(settings):
        async with running(build(settings)) as studio:
            await wait_until_ready(studio.engine, timeout_s=MODEL_TIMEOUT_S)
            yield studio


async def train_round(settings: Settings, say: Say) -> None:
    """Train now, follow the round, say its verdict. Raises RoundEnded when there is none."""
    async with running_studio(settings) as studio:
        view = await follow_round(studio, say)
    for line in verdict_lines(view):
        say(line)
    if view.status not in _ENDED_WELL:
        raise RoundEnded(
            f"round {view.number} {view.status.value}: {view.reason or 'no reason was recorded'}"
        )


async def follow_round(studio: Studio, say: Say, *, poll_s: float = POLL_S) -> RoundView:
    """Start a round and say a line per tenth of its way; when interrupted, cancel it."""
    number = studio.rounds.start(trigger=ACTOR).number
    said = ""
    try:
        while (view := studio.rounds.get(number)).status.is_active:
            line = progress_line(view)
            if line != said:
                say(line)
                said = line
            await asyncio.sleep(poll_s)
    except asyncio.CancelledError:
        studio.rounds.cancel(number)
        raise
    return view


async def promote(settings: Settings, name: str) -> str:
    """Make `name` live."""
    async with running_studio(settings) as studio:
        return await studio.deployment.promote(name, actor=ACTOR)


async def roll_back(settings: Settings) -> str:
    """Go back to what was live before; returns its name."""
    async with running_studio(settings) as studio:
        return await studio.deployment.rollback(actor=ACTOR)


def progress_line(view: RoundView) -> str:
    """Where a round stands, in tenths."""
    if view.progress is None:
        return f"round {view.number}: {view.status.value}"
    tenths = 10 * view.progress.step // max(view.progress.num_steps, 1)
    return f"round {view.number}: {view.progress.phase} {10 * tenths} %"


def verdict_lines(view: RoundView) -> list[str]:
    """The outcome, each of the gate's reasons, and how it trained."""
    version = f" as {view.version}" if view.version else ""
    facts = f"{view.num_train} pairs trained on, {view.num_heldout} held out"
    lines = [f"round {view.number} {view.status.value}{version}: {facts}"]
    if view.verdict is not None:
        lines += [f"  {reason}" for reason in view.verdict.reasons]
    if view.training is not None:
        lines += [f"  {sentence}" for sentence in how_trained.sentences(view.training)]
    return lines
