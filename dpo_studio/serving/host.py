"""The model in its process: loading it, then commands from the inbox and the engine's steps in between.

Everything here runs on the thread that calls `load` and `run`, except the reading of adapter files.
"""

import logging
import queue
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpo_studio.domain.chat import EngineStatus
from dpo_studio.errors import StudioError
from dpo_studio.modeling.adapter_files import LoraPair, read_adapter
from dpo_studio.modeling.base_model import BaseModel, load_base
from dpo_studio.serving import wire
from dpo_studio.serving.adapter_slots import AdapterSlots
from dpo_studio.serving.build import build_runner
from dpo_studio.serving.engine import Engine, EngineLimits

_MAX_SEED = 2**48
_MAX_FAILURES = 3
"""Failed steps in a row after which the device is taken for broken (a CUDA error stays for ever)."""

logger = logging.getLogger(__name__)


class _Read:
    """An adapter that was read and checked, on its way to the engine's thread."""

    def __init__(self, command: wire.Load, pairs: dict[str, LoraPair]) -> None:
        self.command = command
        self.pairs = pairs


class EngineHost:
    """Commands from a queue, the engine's steps in between."""

    def __init__(
        self,
        settings: wire.EngineSettings,
        inbox: "queue.SimpleQueue[Any]",
        send: Callable[[wire.Event], None],
    ) -> None:
        """`send` must be safe to call from any thread."""
        self._settings = settings
        self._inbox = inbox
        self._send = send
        self._status = EngineStatus("starting", f"Loading {settings.model}", model=settings.model)
        self._files = ThreadPoolExecutor(1, thread_name_prefix="adapter-files")

    def load(self) -> None:
        """Load the model, reporting progress. Raises ModelError."""
        settings = self._settings
        base = load_base(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            chat_template=settings.chat_template,
            on_progress=self._progress,
        )
        self._slots = AdapterSlots(base.model, settings.adapter_slots)
        built = build_runner(base, self._slots, max_rows=settings.max_rows, max_context=settings.max_context)
        self._model_sha256 = base.model_sha256
        self._engine = Engine(
            built.runner,
            self._slots,
            base.chat_format(),
            limits=EngineLimits(settings.max_live_requests, settings.reserved_rows, settings.prefill_chunk),
            emit=self._emit,
            draw_seed=lambda: secrets.randbelow(_MAX_SEED),
        )
        self._status = _ready_status(base, built.note, built.runner.max_length)
        self._report()

    def refuse(self, error: StudioError) -> None:
        """Say why there will be no model."""
        self._status = replace(self._status, state="failed", detail=str(error))
        self._send(wire.Report(self._status))

    def run(self) -> None:
        """Serve until the model fails again and again; a fresh process may do better."""
        while self._engine.num_failures < _MAX_FAILURES:
            while self._engine.is_idle or not self._inbox.empty():
                self._handle(self._inbox.get())
            self._engine.step()
            self._report()
        logger.error("giving up after %d failed steps in a row", _MAX_FAILURES)

    def _handle(self, command: Any) -> None:
        match command:
            case wire.Generate(request):
                self._engine.submit(request)
            case wire.Cancel(request_id):
                self._engine.cancel(request_id)
            case wire.Load() if self._engine.has(command.version):
                self._emit(wire.Done(command.call))
            case wire.Load():
                self._files.submit(self._read_adapter, command)
            case _Read():
                self._engine.load(command.command.call, command.command.version, command.pairs)
            case wire.Unload(call, version):
                self._engine.unload(call, version)
            case wire.Ping(call):
                self._send(wire.Done(call))
            case _:
                raise AssertionError(f"unexpected command {command!r}")
        self._report()

    def _read_adapter(self, command: wire.Load) -> None:
        """On the file thread: read and check, then hand over."""
        try:
            _, pairs = read_adapter(Path(command.folder), model_sha256=self._model_sha256)
            self._slots.check(pairs)
            self._inbox.put(_Read(command, pairs))
        except StudioError as error:
            self._send(wire.CallFailed(command.call, error.code, str(error)))
        except Exception:
            # A bug here must be answered, or the caller would wait for ever.
            logger.exception("reading %s failed", command.folder)
            text = f"adapter: {command.version} could not be read; see the engine's log"
            self._send(wire.CallFailed(command.call, "model", text))

    def _emit(self, event: wire.Event) -> None:
        if isinstance(event, wire.Done):
            # Whoever waited for a load reads the status next; it must know the version by then.
            self._report()
        self._send(event)

    def _progress(self, fraction: float, text: str) -> None:
        self._status = replace(self._status, progress=fraction, detail=text)
        self._send(wire.Report(self._status))

    def _report(self) -> None:
        """Tell the parent when the state it knows is no longer true."""
        status = replace(self._status, loaded=self._engine.loaded)
        if status.loaded != self._status.loaded:
            self._status = status
            self._send(wire.Report(status))


def _ready_status(base: BaseModel, note: str, max_length: int) -> EngineStatus:
    return EngineStatus(
        state="ready",
        detail=note,
        progress=1.0,
        model=base.source,
        model_sha256=base.model_sha256,
        tokenizer_sha256=base.tokenizer_sha256,
        device=str(base.device),
        dtype=base.precision,
        context_length=max_length,
        num_parameters=base.num_parameters,
    )
