"""Bodies of the OpenAI-compatible routes.

A parameter that the studio cannot honour is refused rather than ignored, unless it has the value that
changes nothing; null means "not given", as OpenAI's clients send it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dpo_studio.domain.chat import Message, Role, SamplingParams
from dpo_studio.settings import Settings
from dpo_studio.web.requests import MAX_MESSAGES, MAX_SEED, StrictModel, Text, VersionName

MAX_CHOICES = 4
_SMALLEST_TOP_P = 1e-6
_ROLES: dict[str, Role] = {
    "developer": "system",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
}


class NullIsAbsent(StrictModel):
    """Drops keys whose value is null before anything is checked."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


class TextPart(StrictModel):
    """Part of a message; images and sound are refused by their type."""

    type: Literal["text"]
    text: Text


class ChatMessageBody(NullIsAbsent):
    """One turn as OpenAI's clients write it."""

    role: Literal["developer", "system", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(min_length=1, max_length=64)]
    annotations: list[Any] = Field(default_factory=list, max_length=0)
    """Part of every answer of OpenAI's, so clients send it back; always empty here."""

    def message(self) -> Message:
        content = self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)
        return Message(_ROLES[self.role], content)


class StreamOptions(NullIsAbsent):
    """What a stream carries besides text."""

    include_usage: bool = False


class ResponseFormat(NullIsAbsent):
    """Only plain text can be promised."""

    type: Literal["text"]


class ChatCompletionBody(NullIsAbsent):
    """POST /v1/chat/completions."""

    model: VersionName
    messages: Annotated[list[ChatMessageBody], Field(min_length=1, max_length=MAX_MESSAGES)]
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    max_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    stop: (
        Annotated[str, Field(min_length=1, max_length=64)]
        | Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=4)]
    ) = Field(default_factory=list)
    # Accepted and without effect here: they label a request, they do not shape its answer.
    user: Annotated[str, Field(max_length=512)] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    store: bool = False
    # Accepted at the value that changes nothing.
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    logprobs: Literal[False] = False
    response_format: ResponseFormat | None = None

    def conversation(self) -> tuple[Message, ...]:
        """The messages in the studio's form."""
        return tuple(message.message() for message in self.messages)

    def sampling(self, settings: Settings) -> SamplingParams:
        """Parameters given, else the studio's."""
        return SamplingParams(
            temperature=settings.temperature if self.temperature is None else self.temperature,
            top_p=max(self.top_p, _SMALLEST_TOP_P),
            max_tokens=self.max_completion_tokens or self.max_tokens or settings.max_tokens,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
        )
