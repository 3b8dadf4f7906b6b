"""The client's protocol, against a scripted engine on the other end of the pipe."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dpo_studio.domain.chat import Completion, EngineEvent, EngineStatus, SampleFinished, TextDelta
from dpo_studio.errors import Busy, EngineUnavailable, ModelError
from dpo_studio.serving import wire
from dpo_studio.serving.client import EngineClient
from tests.serving.harness import ask

COMPLETION = Completion("hi", (1,), "base", 0, "stop", 3)
Script = Callable[[Any], list[wire.Event]]


class FakePipe:
    """Commands go to `script`, whose events come back at once."""

    def __init__(self, script: Script) -> None:
        self.lines = asyncio.StreamReader()
        self.commands: list[Any] = []
        self._script = script

    def write(self, data: bytes) -> None:
        command = wire.decode(data)
        self.commands.append(command)
        for event in self._script(command):
            self.send(event)

    def is_closing(self) -> bool:
        return False

    def send(self, event: wire.Event) -> None:
        self.lines.feed_data(wire.encode(event))


@asynccontextmanager
async def connected(script: Script) -> AsyncIterator[tuple[EngineClient, FakePipe]]:
    pipe = FakePipe(script)
    client = EngineClient(pipe.lines, pipe)
    running = asyncio.create_task(client.run())
    try:
        yield client, pipe
    finally:
        if not pipe.lines.at_eof():
            pipe.lines.feed_eof()
        await running


def silence(_command: Any) -> list[wire.Event]:
    return []


def answer_twice(command: Any) -> list[wire.Event]:
    if not isinstance(command, wire.Generate):
        return []
    request_id = command.request.request_id
    return [
        wire.Delta(request_id, 1, "hi"),
        wire.Finished(request_id, 1, COMPLETION),
        wire.Delta("somebody else", 0, "zzz"),
        wire.Delta(request_id, 0, "hi"),
        wire.Finished(request_id, 0, COMPLETION),
    ]


async def collect(client: EngineClient, n: int = 1) -> list[EngineEvent]:
    return [event async for event in client.stream(ask("x", n=n))]


async def test_a_stream_ends_after_every_sample_and_cancels_nothing() -> None:
    async with connected(answer_twice) as (client, pipe):
        events = await collect(client, n=2)
        assert events == [
            TextDelta(1, "hi"),
            SampleFinished(1, COMPLETION),
            TextDelta(0, "hi"),
            SampleFinished(0, COMPLETION),
        ]
        assert [type(command) for command in pipe.commands] == [wire.Generate]


async def test_closing_a_stream_cancels_its_request() -> None:
    async with connected(answer_twice) as (client, pipe):
        stream = client.stream(ask("x", n=2))
        await anext(stream)
        await stream.aclose()
        asked, cancelled = pipe.commands
        assert cancelled == wire.Cancel(asked.request.request_id)


async def test_late_events_of_a_closed_stream_do_not_reach_the_next_of_the_same_name() -> None:
    async with connected(silence) as (client, pipe):
        request = ask("x")
        first = asyncio.create_task(anext(client.stream(request)))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = asyncio.create_task(anext(client.stream(request)))
        await asyncio.sleep(0)
        old, _, new = pipe.commands
        pipe.send(wire.Delta(old.request.request_id, 0, "late"))
        pipe.send(wire.Delta(new.request.request_id, 0, "fresh"))
        assert await second == TextDelta(0, "fresh")


async def test_a_refusal_is_raised_as_its_class_and_nothing_is_cancelled() -> None:
    def refuse(command: Any) -> list[wire.Event]:
        return [wire.RequestFailed(command.request.request_id, "busy", "later")]

    async with connected(refuse) as (client, pipe):
        with pytest.raises(Busy, match="later"):
            await collect(client)
        assert len(pipe.commands) == 1


async def test_the_end_of_the_pipe_fails_streams_and_calls_that_wait_and_those_that_come() -> None:
    async with connected(silence) as (client, pipe):
        waiting = [asyncio.create_task(collect(client)), asyncio.create_task(client.ping())]
        await asyncio.sleep(0)
        pipe.lines.feed_eof()
        for task in waiting:
            with pytest.raises(EngineUnavailable, match="is being restarted; please ask again"):
                await task
        with pytest.raises(EngineUnavailable):
            await collect(client)
        with pytest.raises(EngineUnavailable):
            await client.load("v1", Path("/x"))


async def test_calls_are_answered_by_number_in_any_order() -> None:
    async with connected(silence) as (client, pipe):
        first = asyncio.create_task(client.load("v1", Path("/x/../y")))
        second = asyncio.create_task(client.unload("v2"))
        await asyncio.sleep(0)
        load, unload = pipe.commands
        assert load == wire.Load(load.call, "v1", "/y")
        pipe.send(wire.Done(unload.call))
        await second
        assert not first.done()
        pipe.send(wire.CallFailed(load.call, "model", "no good"))
        with pytest.raises(ModelError, match="no good"):
            await first


async def test_status_follows_the_reports() -> None:
    async with connected(silence) as (client, pipe):
        assert client.status.state == "starting"
        pipe.send(wire.Report(EngineStatus("ready", loaded=("base",))))
        await client_sees(client, "ready")
        assert client.status.loaded == ("base",)


async def client_sees(client: EngineClient, state: str) -> None:
    while client.status.state != state:
        await asyncio.sleep(0)
