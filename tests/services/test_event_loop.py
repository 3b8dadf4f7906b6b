"""The event loop serves everyone, so it never waits for the database: no session is opened in its thread.

Each test walks one asynchronous way through the services; what is synchronous is called as pages and routes
call it, in a thread.
"""

import asyncio
import contextlib
import traceback
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import pytest

from dpo_studio.domain.chat import SamplingParams
from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import RoundStatus
from dpo_studio.services.generation import GenerationService
from dpo_studio.services.views import RoundView
from dpo_studio.store.database import Database
from tests.services.conftest import SCHEDULE, Bench, Rounds, said


class Watch:
    """Where sessions were opened in a thread that runs an event loop."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def note(self) -> None:
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            ours = [frame for frame in traceback.extract_stack() if "/dpo_studio/" in frame.filename]
            self.places.append(" < ".join(f"{frame.name}:{frame.lineno}" for frame in ours[-2:-5:-1]))


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Watches from here on; at the end nothing may have been seen."""
    watch, session = Watch(), Database._session

    def watched(self: Database, engine: Any) -> Any:
        watch.note()
        return session(self, engine)

    monkeypatch.setattr(Database, "_session", watched)
    yield watch
    assert watch.places == []


@pytest.fixture
async def voted(rounds: Rounds) -> AsyncIterator[Rounds]:
    """Six votes, cast before the watch begins."""
    await rounds.label(6)
    yield rounds


async def train(rounds: Rounds) -> RoundView:
    started = await asyncio.to_thread(lambda: rounds.service.start(trigger="ann"))
    async with asyncio.timeout(30):
        return await rounds.service.wait(started.number, poll_s=0.02)


async def test_the_watch_sees_a_session_on_the_loop(rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, session = Watch(), Database._session

    def watched(self: Database, engine: Any) -> Any:
        watch.note()
        return session(self, engine)

    monkeypatch.setattr(Database, "_session", watched)
    rounds.service.schedule()
    assert len(watch.places) == 1 and "schedule" in watch.places[0]
    await asyncio.to_thread(rounds.service.schedule)
    assert len(watch.places) == 1


async def test_a_round_that_goes_live_and_back(voted: Rounds, watch: Watch) -> None:
    del watch
    assert (await train(voted)).status is RoundStatus.PROMOTED
    assert await voted.bench.deployment.rollback(actor="ann") == "base"


async def test_a_round_that_waits_for_a_person(voted: Rounds, watch: Watch) -> None:
    del watch
    await asyncio.to_thread(voted.service.set_schedule, replace(SCHEDULE, gate="manual"), actor="ann")
    view = await train(voted)
    assert view.status is RoundStatus.WAITING
    assert (await voted.service.approve(view.number, actor="ann")).status is RoundStatus.PROMOTED


async def test_a_round_that_the_end_of_the_studio_cuts_off(voted: Rounds, watch: Watch) -> None:
    del watch
    voted.plays("hang")
    started = await asyncio.to_thread(lambda: voted.service.start(trigger="ann"))
    async with asyncio.timeout(20):
        while (await asyncio.to_thread(voted.service.get, started.number)).progress is None:
            await asyncio.sleep(0.02)
    voted.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await voted.task
    view = await asyncio.to_thread(voted.service.get, started.number)
    assert view.status is RoundStatus.INTERRUPTED


async def test_labeling_by_hand_and_ahead(bench: Bench, rounds: Rounds, watch: Watch) -> None:
    del rounds, watch
    working = asyncio.create_task(bench.factory.run())
    for prompt in (None, said("my own question")):
        view = await bench.labeling.next_ready("ann", prompt)
        await asyncio.to_thread(bench.labeling.vote, "ann", view.id, Choice.A)
    await asyncio.sleep(0.2)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def test_answers_of_a_published_version(voted: Rounds, watch: Watch) -> None:
    del watch
    await train(voted)
    await voted.service.tick()
    generation = GenerationService(voted.bench.engine, voted.bench.deployment)
    view = await generation.generate(said("hello"), version="v1", sampling=SamplingParams())
    assert view.version == "v1"
