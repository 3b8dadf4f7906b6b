"""The engine process, kept alive from the web process. No torch.

Starts it in a session of its own, restarts it with growing pauses after any death, kills it when it hangs,
and gives it back the versions it had to serve. A model that cannot be loaded is an answer, not a crash: the
state is then "failed", with the reason, and nothing is tried again.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Set
from dataclasses import replace
from pathlib import Path

import dpo_studio
from dpo_studio.domain.chat import EngineEvent, EngineState, EngineStatus, GenerationRequest
from dpo_studio.errors import EngineUnavailable, NotFound, StudioError
from dpo_studio.serving import wire
from dpo_studio.serving.client import EngineClient
from dpo_studio.serving.wire import EngineSettings

__all__ = ["EngineSettings", "EngineSupervisor"]

_LONGEST_PAUSE_S = 30.0
_MAX_FAILED_STARTS = 4
_STOP_TIMEOUT_S = 5.0
_LOAD_ATTEMPTS = 5
_MAX_LOG_BYTES = 10_000_000

logger = logging.getLogger(__name__)


class EngineSupervisor:
    """A ChatEngine that outlives its engine processes."""

    def __init__(
        self,
        settings: EngineSettings,
        *,
        live_versions: Callable[[], Mapping[str, Path]],
        log_path: Path,
        program: tuple[str, ...] = (sys.executable, "-m", "dpo_studio.serving.process"),
        first_pause_s: float = 0.5,
    ) -> None:
        """`live_versions`: versions to load after every start, and on demand."""
        self._settings = settings
        self._live_versions = live_versions
        self._log_path = log_path
        self._program = program
        self._first_pause_s = first_pause_s
        self._status = EngineStatus("stopped", "The model has not been started.", model=settings.model)
        self._client: EngineClient | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._folders: dict[str, Path] = {}
        """Of versions loaded by call and not unloaded since: they too come back on demand."""
        self._phase: EngineState = "starting"
        self._is_serving = False

    @property
    def status(self) -> EngineStatus:
        return self._status

    @property
    def pid(self) -> int | None:
        """Of the running engine process."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Begin; returns at once. Watch `status` for progress."""
        assert self._task is None
        self._set("starting", "The model is being started.")
        self._task = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def stop(self) -> None:
        """End the engine process and wait until it is gone."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._set("stopped", "The model was stopped.")

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[EngineEvent, None]:
        for attempts_left in reversed(range(_LOAD_ATTEMPTS)):
            client = self._ready_client()
            if request.version not in client.status.loaded:
                await self._load_on_demand(client, request.version)
            try:
                async with contextlib.aclosing(client.stream(request)) as events:
                    async for event in events:
                        yield event
                return
            except NotFound:
                # Raised before the first event only: others have just taken its slot.
                if not attempts_left or self._folder_of(request.version) is None:
                    raise

    async def load(self, version: str, folder: Path) -> None:
        client = self._ready_client()
        if version not in client.status.loaded:
            await client.load(version, folder)
        self._folders[version] = folder

    async def unload(self, version: str) -> None:
        self._folders.pop(version, None)
        # An engine that is not ready has nothing to forget, and starts with the live versions only.
        if self._status.state == "ready" and self._client is not None:
            await self._client.unload(version)

    def _ready_client(self) -> EngineClient:
        status = self._status
        if status.state == "ready" and self._client is not None:
            return self._client
        if status.state in ("starting", "restarting"):
            raise EngineUnavailable(
                f"The model is {status.state} ({status.detail.rstrip('.')}); please ask again in a moment."
            )
        raise EngineUnavailable(status.detail)

    async def _load_on_demand(self, client: EngineClient, version: str) -> None:
        """A version may have left its slot for others; it comes back when it is asked for."""
        folder = self._folder_of(version)
        if folder is not None:
            await client.load(version, folder)

    def _folder_of(self, version: str) -> Path | None:
        return self._folders.get(version) or self._live_versions().get(version)

    async def _supervise(self) -> None:
        pause = self._first_pause_s
        num_failed_starts = 0
        while True:
            try:
                was_ready, code = await self._live_once()
            except OSError as error:
                self._set("failed", f"The model's process could not be started ({error}).")
                return
            if self._status.state == "failed":
                return
            pause = self._first_pause_s if was_ready else min(pause * 2, _LONGEST_PAUSE_S)
            num_failed_starts = 0 if was_ready else num_failed_starts + 1
            reason = _describe(code)
            logger.warning("the engine process %s", reason)
            if num_failed_starts >= _MAX_FAILED_STARTS:
                self._set("failed", f"The model could not be started: it {reason}; see {self._log_path}.")
                return
            self._phase = "restarting"
            self._set("restarting", f"The model {reason} and is being restarted.")
            await asyncio.sleep(pause)

    async def _live_once(self) -> tuple[bool, int]:
        """One engine process from start to end: (was it ever ready, its exit code)."""
        process = self._process = await self._spawn()
        assert process.stdin is not None and process.stdout is not None
        self._is_serving = False
        client = self._client = EngineClient(process.stdout, process.stdin, on_status=self._on_status)
        process.stdin.write(wire.encode(wire.Start(self._settings)))
        reading = asyncio.create_task(client.run(), name="engine-events")
        watching = asyncio.create_task(self._watch(client), name="engine-watch")
        try:
            await asyncio.wait({reading, watching}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._client = None
            is_hung = watching.done() and not reading.done()
            watching.cancel()
            code = await _uninterrupted(_end(process, {reading, watching}, is_hung=is_hung))
        return client.status.state == "ready", code

    async def _spawn(self) -> asyncio.subprocess.Process:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        if self._log_path.exists() and self._log_path.stat().st_size > _MAX_LOG_BYTES:
            self._log_path.replace(self._log_path.with_name(f"{self._log_path.name}.1"))
        with self._log_path.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *self._program,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=_environment(),
                start_new_session=True,
                limit=wire.MAX_LINE_BYTES,
            )

    async def _watch(self, client: EngineClient) -> None:
        """Give a ready engine its versions, then ping it; return when it does not answer.

        While it loads there is no deadline: fetching a large model may take an hour.
        """
        while client.status.state != "ready":
            await asyncio.sleep(0.05)
        await self._reload(client)
        self._is_serving = True
        self._on_status(client.status)
        while True:
            await asyncio.sleep(self._settings.hang_timeout_s / 6)
            # Twice: when this process itself was stopped for a while, the first deadline passes at once.
            if not await self._answers(client) and not await self._answers(client):
                logger.error("the engine process did not answer for %g s", self._settings.hang_timeout_s)
                return

    async def _answers(self, client: EngineClient) -> bool:
        try:
            await asyncio.wait_for(client.ping(), self._settings.hang_timeout_s / 2)
        except TimeoutError:
            return False
        return True

    async def _reload(self, client: EngineClient) -> None:
        try:
            versions = dict(self._live_versions())
        except Exception:
            # The caller's code: without its answer, base can still be served.
            logger.exception("the versions to load are not known")
            versions = {}
        for version, folder in versions.items():
            self._set(self._phase, f"Loading version {version}.")
            try:
                await client.load(version, folder)
            except StudioError as error:
                # The rest can still be served; asking for this one will name the reason.
                logger.error("version %s was not loaded: %s", version, error)

    def _on_status(self, status: EngineStatus) -> None:
        """Pass on what the process says; to others it is ready only once it has its versions."""
        if status.state == "failed" or (status.state == "ready" and self._is_serving):
            self._status = status
        elif status.state == "ready":
            self._status = replace(status, state=self._phase, detail="Loading versions.", progress=0.95)
        else:
            self._status = replace(status, state=self._phase)

    def _set(self, state: EngineState, detail: str) -> None:
        self._status = replace(self._status, state=state, detail=detail, loaded=())


async def _uninterrupted(ending: Coroutine[None, None, int]) -> int:
    """Wait for `ending` also when cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(ending)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


async def _end(process: asyncio.subprocess.Process, tasks: Set[asyncio.Task[None]], *, is_hung: bool) -> int:
    """Close the pipe, then insist. Returns the exit code; nothing of its process group is left."""
    assert process.stdin is not None
    process.stdin.close()
    gentle: tuple[signal.Signals | None, ...] = () if is_hung else (None, signal.SIGTERM)
    for how in (*gentle, signal.SIGKILL):
        if how is not None:
            _signal_group(process.pid, how)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
            break
    code = await process.wait()
    # Children of the process, if a library started any.
    _signal_group(process.pid, signal.SIGKILL)
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            logger.error("the engine's pipe failed", exc_info=outcome)
    return code


def _signal_group(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, how)


def _describe(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed (often for want of memory)"
    if code < 0:
        return f"crashed with {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _environment() -> dict[str, str]:
    package_root = str(Path(dpo_studio.__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PYTHONPATH": package_root if not inherited else f"{package_root}{os.pathsep}{inherited}",
        # Spinning OpenMP threads on busy cores turned 29 ms steps into 796 ms (measured).
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
