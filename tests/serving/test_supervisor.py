"""The supervisor with real engine processes over a tiny model."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dpo_studio.domain.chat import GenerationRequest, SamplingParams, TextDelta
from dpo_studio.errors import EngineUnavailable, ModelError, NotFound
from dpo_studio.serving import wire
from dpo_studio.serving.supervisor import EngineSettings, EngineSupervisor
from tests.models import make_tiny_adapter, make_tiny_model
from tests.serving.harness import ask

pytestmark = pytest.mark.integration
REAL = (sys.executable, "-m", "dpo_studio.serving.process")
NOISY = (
    sys.executable,
    "-c",
    "import sys, dpo_studio.serving.process as p, dpo_studio.serving.host as h\n"
    "load = h.load_base\n"
    "h.load_base = lambda *a, **k: (print('a library prints'), load(*a, **k))[1]\n"
    "sys.exit(p.main())",
)
SILENT = (
    sys.executable,
    "-c",
    "import sys\n"
    "sys.stdin.readline()\n"
    """print('{"kind":"Report","status":{"state":"ready","loaded":["base"]}}', flush=True)\n"""
    "for line in sys.stdin: pass",
)
LONG = SamplingParams(temperature=1.0, max_tokens=200, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("supervisor") / "model")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    return make_tiny_adapter(folder.parent / "v1", folder)


@asynccontextmanager
async def supervised(
    model: Path,
    log_path: Path,
    versions: Mapping[str, Path] | None = None,
    program: tuple[str, ...] = REAL,
    hang_timeout_s: float = 30.0,
) -> AsyncIterator[EngineSupervisor]:
    settings = EngineSettings(str(model), device="cpu", threads=1, hang_timeout_s=hang_timeout_s)
    supervisor = EngineSupervisor(
        settings,
        live_versions=lambda: versions or {},
        log_path=log_path,
        program=program,
        first_pause_s=0.1,
    )
    await supervisor.start()
    try:
        yield supervisor
    finally:
        await supervisor.stop()


async def until(supervisor: EngineSupervisor, state: str, timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while supervisor.status.state != state:
            await asyncio.sleep(0.02)


async def text_of(supervisor: EngineSupervisor, request: GenerationRequest) -> list[str]:
    """The texts by sample; each must be what its deltas added up to."""
    shown = [""] * request.n
    finished: dict[int, str] = {}
    async for event in supervisor.stream(request):
        if isinstance(event, TextDelta):
            shown[event.index] += event.text
        else:
            assert event.index not in finished
            finished[event.index] = event.completion.text
    assert [finished[index] for index in range(request.n)] == shown
    return shown


async def test_the_life_of_an_engine(folder: Path, adapter: Path, tmp_path: Path) -> None:
    """One process start is seconds, so one test walks through all of its life."""
    versions = {"v1": adapter}
    log = tmp_path / "engine.log"
    async with supervised(folder, log, versions, program=NOISY) as supervisor:
        with pytest.raises(EngineUnavailable, match="The model is starting"):
            await text_of(supervisor, ask("hello"))
        await until(supervisor, "ready")
        assert supervisor.status.loaded == ("base", "v1")
        assert supervisor.status.num_parameters > 0 and supervisor.status.device == "cpu"
        first, second = await text_of(supervisor, ask("hello", sampling=LONG, n=2))
        assert first != second

        await versions_come_and_go(supervisor, versions, adapter)
        await come_back_after_eviction(supervisor, adapter)
        await cancel_is_quick(supervisor)
        killed = await survives_a_kill(supervisor)
        last_pid = supervisor.pid
        began = time.monotonic()
        await supervisor.stop()
        # At once: the process ends by itself when its stdin does, as it must when the parent is killed.
        assert time.monotonic() - began < 3
    assert supervisor.status.state == "stopped"
    assert not Path(f"/proc/{killed}").exists() and not Path(f"/proc/{last_pid}").exists()
    assert "a library prints" in log.read_text(), "and it did not disturb the pipe"
    with pytest.raises(EngineUnavailable, match="was stopped"):
        await text_of(supervisor, ask("hello"))


async def survives_a_kill(supervisor: EngineSupervisor) -> int:
    """What waits fails with a sentence; the next process has the versions and gives the same answers."""
    request = ask("hello", sampling=LONG, n=2, version="v1")
    before = await text_of(supervisor, request)
    pending = asyncio.create_task(text_of(supervisor, ask("hello", sampling=LONG, n=8)))
    await asyncio.sleep(0.05)
    killed = supervisor.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="is being restarted; please ask again"):
        await pending
    await until(supervisor, "restarting")
    assert "was killed (often for want of memory) and is being restarted" in supervisor.status.detail
    await until(supervisor, "ready")
    assert supervisor.pid != killed
    assert supervisor.status.loaded == ("base", "v1")
    assert await text_of(supervisor, request) == before
    return killed


async def versions_come_and_go(
    supervisor: EngineSupervisor, versions: dict[str, Path], adapter: Path
) -> None:
    """By call, on demand when they ought to be there, and refused in a sentence."""
    del versions["v1"]
    await supervisor.unload("v1")
    await supervisor.unload("never there")
    assert supervisor.status.loaded == ("base",)
    with pytest.raises(NotFound, match="expected one of base, found 'v1'"):
        await text_of(supervisor, ask("hello", version="v1"))
    with pytest.raises(ModelError, match=r"expected a regular file adapter_config\.json"):
        await supervisor.load("v2", adapter.parent)
    versions["v1"] = adapter
    await text_of(supervisor, ask("hello", version="v1"))
    await supervisor.load("v1", adapter)
    assert list(supervisor.status.loaded) == ["base", "v1"]


async def come_back_after_eviction(supervisor: EngineSupervisor, adapter: Path) -> None:
    """More versions than slots: each can be asked all the same."""
    names = ["v3", "v4", "v5", "v6", "v7"]
    for name in names:
        await supervisor.load(name, adapter)
        assert name in supervisor.status.loaded
    assert "v3" not in supervisor.status.loaded
    await asyncio.gather(*(text_of(supervisor, ask("hello", version=name)) for name in names))


async def cancel_is_quick(supervisor: EngineSupervisor) -> None:
    """A closed stream gives its rows back at once: the next answer does not wait for it."""
    stream = supervisor.stream(ask("hello", sampling=LONG, n=16))
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(5):
        await text_of(supervisor, ask("hello"))


async def test_a_model_that_cannot_be_loaded_is_said_once_and_not_tried_again(tmp_path: Path) -> None:
    async with supervised(tmp_path / "nothing-here", tmp_path / "engine.log") as supervisor:
        await until(supervisor, "failed")
        assert "expected a folder with a model, found nothing at" in supervisor.status.detail
        async with asyncio.timeout(20):
            while supervisor.pid is not None:
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.5)
        assert supervisor.status.state == "failed" and supervisor.pid is None
        with pytest.raises(EngineUnavailable, match="found nothing at"):
            await text_of(supervisor, ask("hello"))


async def test_stopping_twice_at_any_moment_leaves_no_process(folder: Path, tmp_path: Path) -> None:
    for pause_s in (0.0, 0.05, 0.3):
        async with supervised(folder, tmp_path / "engine.log", program=SILENT) as supervisor:
            await asyncio.sleep(pause_s)
            process = supervisor._process
            await asyncio.gather(supervisor.stop(), supervisor.stop())
        assert process is None or process.returncode is not None


async def test_a_hung_engine_is_killed_and_restarted(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "engine.log"
    async with supervised(folder, log, program=SILENT, hang_timeout_s=0.3) as supervisor:
        await until(supervisor, "ready")
        hung = supervisor.pid
        began = time.monotonic()
        await until(supervisor, "restarting")
        assert time.monotonic() - began < 2
        await until(supervisor, "ready")
        assert supervisor.pid != hung


async def test_an_engine_that_never_gets_ready_is_given_up(folder: Path, tmp_path: Path) -> None:
    program = (sys.executable, "-c", "raise SystemExit(7)")
    async with supervised(folder, tmp_path / "engine.log", program=program) as supervisor:
        await until(supervisor, "failed")
        assert "ended with exit code 7" in supervisor.status.detail
        assert "engine.log" in supervisor.status.detail


def test_an_engine_whose_parent_is_gone_ends_at_once_even_while_it_imports(folder: Path) -> None:
    line = wire.encode(wire.Start(EngineSettings(str(folder), device="cpu")))
    with subprocess.Popen(REAL, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        process.communicate(line, timeout=20)
        assert process.returncode == 0
