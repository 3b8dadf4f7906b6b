"""Messages between the web process and the engine process: frozen dataclasses, one JSON line each.

No torch. Both ends are our own code, so an unreadable line is a bug and raises BadInput.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dpo_studio.domain.chat import Completion, EngineStatus, GenerationRequest
from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.errors import (
    BadInput,
    Busy,
    Conflict,
    EngineUnavailable,
    ModelError,
    NotFound,
    StudioError,
)

MAX_LINE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything the engine process must know to start."""

    model: str
    device: str = "auto"
    dtype: str = "auto"
    chat_template: str | None = None
    """Text of a template, or the path of a file with one."""
    threads: int = 0
    """CPU threads; 0: all cores but one (a second thread on a busy core costs more than it gives)."""
    max_live_requests: int = 64
    """Waiting requests of either priority; more are refused as Busy."""
    max_rows: int = 16
    """Answers that are written at the same time, memory permitting."""
    reserved_rows: int = 4
    """Rows that background requests leave free for people."""
    max_context: int = 4096
    adapter_slots: int = 4
    """Versions beside base that can be served at the same time."""
    prefill_chunk: int = 128
    """Prompt tokens read between two decode steps."""
    hang_timeout_s: float = 30.0
    """A ready engine that does not answer a ping for so long is killed."""


@dataclass(frozen=True, slots=True)
class Start:
    """First line to the engine."""

    settings: EngineSettings


@dataclass(frozen=True, slots=True)
class Generate:
    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    request_id: str


@dataclass(frozen=True, slots=True)
class Load:
    call: int
    version: str
    folder: str


@dataclass(frozen=True, slots=True)
class Unload:
    call: int
    version: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Answered by `Done` from the thread that owns the model."""

    call: int


@dataclass(frozen=True, slots=True)
class Delta:
    request_id: str
    index: int
    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    request_id: str
    index: int
    completion: Completion


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """The whole request ended with an error; no sample of it finishes any more."""

    request_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Done:
    call: int


@dataclass(frozen=True, slots=True)
class CallFailed:
    call: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Report:
    status: EngineStatus


Command: TypeAlias = Start | Generate | Cancel | Load | Unload | Ping
Event: TypeAlias = Delta | Finished | RequestFailed | Done | CallFailed | Report

_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(Start, Generate, Cancel, Load, Unload, Ping),
        *(Delta, Finished, RequestFailed, Done, CallFailed, Report),
    )
}
_ERRORS: dict[str, type[StudioError]] = {
    kind.code: kind for kind in (BadInput, NotFound, Conflict, Busy, EngineUnavailable, ModelError)
}


def encode(message: Command | Event) -> bytes:
    """One line with its newline."""
    value = {"kind": type(message).__name__, **to_json(message)}
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Any:
    """The message in a line. Raises BadInput."""
    try:
        value = json.loads(line)
        kind = value.pop("kind")
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise BadInput(f"wire: expected a JSON object with a kind, found {line[:80]!r}") from error
    if kind == "Delta":
        # By far the most frequent; the strict decoder would cost more than the rest of the web process.
        return Delta(**value)
    if kind not in _KINDS:
        raise BadInput(f"wire: expected one of {sorted(_KINDS)}, found {kind!r}")
    return from_json(_KINDS[kind], value)


def error_from(code: str, message: str) -> StudioError:
    """The error that crossed the pipe, as the class it was."""
    return _ERRORS.get(code, EngineUnavailable)(message)


def folder_text(folder: Path) -> str:
    """Absolute, because the two processes may have different working directories."""
    return str(folder.resolve())
