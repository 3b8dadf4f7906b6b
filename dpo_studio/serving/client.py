"""The web process's end of the pipe to one engine process. No torch.

One client lives as long as one engine process: when the pipe ends, everything that waits gets
EngineUnavailable, and so does everything that is asked later.
"""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from dpo_studio.domain.chat import EngineEvent, EngineStatus, GenerationRequest, SampleFinished, TextDelta
from dpo_studio.errors import EngineUnavailable, StudioError
from dpo_studio.serving import wire

STOPPED = "The model stopped while it was answering and is being restarted; please ask again."


class Lines(Protocol):
    """What the client reads: asyncio.StreamReader has it."""

    async def readline(self) -> bytes: ...


class Pipe(Protocol):
    """What the client writes to: asyncio.StreamWriter has it."""

    def write(self, data: bytes, /) -> None: ...
    def is_closing(self) -> bool: ...


_Item = EngineEvent | StudioError


class EngineClient:
    """A ChatEngine over a pair of streams. `run` must be running."""

    def __init__(
        self,
        lines: Lines,
        pipe: Pipe,
        *,
        on_status: Callable[[EngineStatus], None] | None = None,
    ) -> None:
        self._lines = lines
        self._pipe = pipe
        self._on_status = on_status
        self._status = EngineStatus("starting", "The model is being started.")
        self._is_closed = False
        self._streams: dict[str, asyncio.Queue[_Item]] = {}
        self._calls: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count(1)

    @property
    def status(self) -> EngineStatus:
        return self._status

    async def run(self) -> None:
        """Read events until the engine ends, then fail whatever still waits."""
        try:
            while line := await self._lines.readline():
                self._receive(wire.decode(line))
        finally:
            self._close()

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[EngineEvent, None]:
        if self._is_closed:
            raise EngineUnavailable(STOPPED)
        # Unbounded, and yet small: an answer has at most max_tokens events.
        events: asyncio.Queue[_Item] = asyncio.Queue()
        # A name of its own on the wire: late events of a cancelled stream must not reach the next one.
        wire_id = f"{request.request_id}#{next(self._numbers)}"
        self._streams[wire_id] = events
        waiting = request.n
        try:
            self._send(wire.Generate(replace(request, request_id=wire_id)))
            while waiting:
                event = await events.get()
                if isinstance(event, StudioError):
                    waiting = 0
                    raise event
                waiting -= isinstance(event, SampleFinished)
                yield event
        finally:
            del self._streams[wire_id]
            if waiting:
                self._send(wire.Cancel(wire_id))

    async def load(self, version: str, folder: Path) -> None:
        await self._call(lambda number: wire.Load(number, version, wire.folder_text(folder)))

    async def unload(self, version: str) -> None:
        await self._call(lambda number: wire.Unload(number, version))

    async def ping(self) -> None:
        """Return when the thread that owns the model has answered."""
        await self._call(wire.Ping)

    async def _call(self, command: Callable[[int], wire.Command]) -> None:
        if self._is_closed:
            raise EngineUnavailable(STOPPED)
        number = next(self._numbers)
        answer = self._calls[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(command(number))
            await answer
        finally:
            del self._calls[number]

    def _send(self, command: wire.Command) -> None:
        if not self._is_closed and not self._pipe.is_closing():
            self._pipe.write(wire.encode(command))

    def _receive(self, event: wire.Event) -> None:
        match event:
            case wire.Delta(request_id, index, text):
                self._deliver(request_id, TextDelta(index, text))
            case wire.Finished(request_id, index, completion):
                self._deliver(request_id, SampleFinished(index, completion))
            case wire.RequestFailed(request_id, code, message):
                self._deliver(request_id, wire.error_from(code, message))
            case wire.Done(call):
                self._answer(call, None)
            case wire.CallFailed(call, code, message):
                self._answer(call, wire.error_from(code, message))
            case wire.Report(status):
                self._status = status
                if self._on_status is not None:
                    self._on_status(status)

    def _deliver(self, request_id: str, item: _Item) -> None:
        # A request that was cancelled here may still be answered there; nobody waits for that.
        if request_id in self._streams:
            self._streams[request_id].put_nowait(item)

    def _answer(self, call: int, error: StudioError | None) -> None:
        answer = self._calls.get(call)
        if answer is None or answer.done():
            return
        if error is None:
            answer.set_result(None)
        else:
            answer.set_exception(error)

    def _close(self) -> None:
        self._is_closed = True
        for events in self._streams.values():
            events.put_nowait(EngineUnavailable(STOPPED))
        for answer in self._calls.values():
            if not answer.done():
                answer.set_exception(EngineUnavailable(STOPPED))
