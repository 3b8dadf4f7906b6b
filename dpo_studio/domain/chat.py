"""Conversations, sampling, and the protocol of whatever answers them.

The web process speaks to a model only through `ChatEngine`; it never sees a tensor or a token string.
"""

import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from dpo_studio.errors import BadInput

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled"]
Priority = Literal["live", "background"]

BASE = "base"
"""Name of the version without any adapter."""

_SILENT = re.compile("[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")
_SPACING = re.compile("[\x0b-\x0d\x1c-\x1f]")
_BETWEEN_WORDS = re.compile(rf"(?<=\S){_SPACING.pattern}+(?=\S)")

MAX_PROMPT_CHARS = 32_000
"""Refused above this before the tokenizer sees it; the model's context is a second, tighter limit."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn. `temperature` 0 is greedy and ignores the seed."""

    temperature: float = 0.9
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    max_tokens: int = 256
    seed: int | None = None
    """None: the engine draws one. Sample i of a request uses its own stream derived from (seed, i)."""
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _within("temperature", self.temperature, 0.0, 5.0)
        _within("top_p", self.top_p, 1e-6, 1.0)
        _within("top_k", self.top_k, 0, 1_000_000)
        _within("max_tokens", self.max_tokens, 1, 8192)
        if self.seed is not None:
            _within("seed", self.seed, 0, 2**63 - 1)
        if len(self.stop) > 4 or any(not stop or len(stop) > 64 for stop in self.stop):
            raise BadInput("stop: expected at most 4 strings of 1 to 64 characters")


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """`n` samples of one prompt from one named version (never the word "live": callers resolve it)."""

    request_id: str
    messages: tuple[Message, ...]
    version: str
    sampling: SamplingParams
    n: int = 1
    priority: Priority = "live"


@dataclass(frozen=True, slots=True)
class Completion:
    """One finished answer, exactly as sampled."""

    text: str
    token_ids: tuple[int, ...]
    """The sampled ids, EOS included when the model ended by itself. Training uses these, not the text."""
    version: str
    seed: int
    finish_reason: FinishReason
    num_prompt_tokens: int


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text of sample `index`. Deltas of one sample concatenate to its completion's text."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class SampleFinished:
    """Sample `index` is complete. Exactly one per sample, after its last delta."""

    index: int
    completion: Completion


EngineEvent = TextDelta | SampleFinished
EngineState = Literal["starting", "ready", "restarting", "failed", "stopped"]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the engine says of itself."""

    state: EngineState
    detail: str = ""
    """A sentence for people: what is loading, or why it failed."""
    progress: float = 0.0
    """0 to 1 while starting."""
    model: str = ""
    model_sha256: str = ""
    """Identity of the base weights; adapters trained on another are refused."""
    tokenizer_sha256: str = ""
    """Identity of tokenizer and chat template."""
    device: str = ""
    dtype: str = ""
    context_length: int = 0
    num_parameters: int = 0
    loaded: tuple[str, ...] = field(default=())
    """Versions that can be sampled from now, `base` included when ready."""


class ChatEngine(Protocol):
    """A model that answers. All methods are called from the event loop of the web process."""

    @property
    def status(self) -> EngineStatus:
        """The latest known state; never blocks."""
        ...

    def stream(self, request: GenerationRequest) -> AsyncGenerator[EngineEvent, None]:
        """Yield events until every sample has finished. Closing the generator cancels the request.

        Raises EngineUnavailable when the engine is not ready or dies meanwhile, BadInput when the prompt
        does not fit, NotFound when the version is not loaded, Busy when the queue is full.
        """
        ...

    async def load(self, version: str, folder: Path) -> None:
        """Make a published version available. Raises ModelError when the folder cannot be used.

        Loading a version that is loaded already does nothing.
        """
        ...

    async def unload(self, version: str) -> None:
        """Forget a version once its last response has ended. Unknown names are ignored."""
        ...


def check_conversation(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Refuse what no model can answer: empty, over-long, or with turns out of order.

    Control characters other than tab and newline are removed (see `clean_text`), as browsers paste them by
    accident and no tokenizer was trained on them. Returns the cleaned messages.
    """
    if not messages:
        raise BadInput("messages: expected at least one message, found none")
    cleaned = tuple(Message(message.role, clean_text(message.content)) for message in messages)
    expected: tuple[Role, ...] = ("system", "user")
    for position, message in enumerate(cleaned):
        if message.role not in expected:
            wanted = " or ".join(expected)
            raise BadInput(f"messages[{position}]: expected the role {wanted}, found {message.role}")
        if not message.content.strip():
            raise BadInput(f"messages[{position}]: expected some text, found none")
        expected = ("assistant",) if message.role == "user" else ("user",)
    if cleaned[-1].role != "user":
        raise BadInput(f"messages: expected the last turn to be the user's, found {cleaned[-1].role}")
    size = sum(len(message.content) for message in cleaned)
    if size > MAX_PROMPT_CHARS:
        raise BadInput(
            f"messages: expected at most {MAX_PROMPT_CHARS} characters, found {size}; shorten them"
        )
    return cleaned


def clean_text(text: str) -> str:
    """Text without control characters and lone surrogates; tabs and newlines stay.

    Where a control character that counts as white space (a page or line break of a word processor) is all
    that stands between two words, a blank takes its place.
    """
    kept = _SILENT.sub("", text)
    return _SPACING.sub("", _BETWEEN_WORDS.sub(" ", kept))


def _within(name: str, value: float, low: float, high: float) -> None:
    # NaN fails both comparisons, so it is refused here too.
    if not low <= value <= high:
        raise BadInput(f"{name}: expected {low} to {high}, found {value}")
