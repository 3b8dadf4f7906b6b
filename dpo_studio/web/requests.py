"""What clients may send, as strict models: unknown keys, wrong types and non-finite numbers are refused.

Limits here keep nonsense from the services; the rules of the domain (turn order, lengths, ranges that
depend on the model) stay in the domain.
"""

from typing import Annotated, Any, Literal

from fastapi import Path
from pydantic import BaseModel, ConfigDict, Field, model_validator

from dpo_studio.domain.chat import Message, Role, SamplingParams
from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import LossName
from dpo_studio.settings import Settings

MAX_MESSAGES = 256
MAX_SEED = 2**63 - 1

# SQLite integers end at 2**63; nobody trains that many rounds.
RoundNumber = Annotated[int, Path(ge=1, le=2**31)]
Identifier = Annotated[str, Path(min_length=1, max_length=64)]
VersionName = Annotated[str, Field(min_length=1, max_length=64)]
Text = Annotated[str, Field(max_length=1_000_000)]


class StrictModel(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class MessageBody(StrictModel):
    """One turn."""

    role: Role
    content: Text


class PromptBody(StrictModel):
    """A prompt as one user turn or as a conversation; which of them may be left out, subclasses say."""

    prompt: Text | None = None
    messages: Annotated[list[MessageBody], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "PromptBody":
        if self.prompt is not None and self.messages is not None:
            raise ValueError("expected prompt or messages, found both")
        return self

    def conversation(self) -> tuple[Message, ...] | None:
        """The messages given in either form; None when neither was."""
        if self.messages is not None:
            return tuple(Message(message.role, message.content) for message in self.messages)
        return None if self.prompt is None else (Message("user", self.prompt),)


class ComparisonBody(PromptBody):
    """`{}` asks for the next prompt of the queue."""


class VoteBody(StrictModel):
    """A judgement of a comparison."""

    choice: Literal["a", "b", "tie", "both_bad", "skip"]
    strength: Annotated[int, Field(ge=1, le=3)] | None = None
    reasons: list[Annotated[str, Field(max_length=64)]] = Field(default_factory=list, max_length=16)
    note: Text | None = None
    edited: Text | None = None

    @property
    def judgement(self) -> Choice:
        return Choice(self.choice)


class GenerateBody(PromptBody):
    """One answer from one version."""

    version: VersionName = "live"
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    max_tokens: Annotated[int, Field(ge=1, le=8192)] | None = None

    @model_validator(mode="after")
    def _some_prompt(self) -> "GenerateBody":
        if self.prompt is None and self.messages is None:
            raise ValueError("expected prompt or messages, found neither")
        return self

    def sampling(self, settings: Settings) -> SamplingParams:
        """Parameters given, else the studio's."""
        return SamplingParams(
            temperature=settings.temperature if self.temperature is None else self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            max_tokens=self.max_tokens or settings.max_tokens,
            seed=self.seed,
        )


class TrainingBody(StrictModel):
    """A choice for the rounds to come. What is left out is the preset's, so `{}` is the preset."""

    loss: LossName | None = None
    beta: float | None = None
    label_smoothing: float | None = None
    sft_weight: float | None = None
    learning_rate: float | None = None
    epochs: int | None = None
    lora_rank: int | None = None
    early_stop_patience: int | None = None
    ld_alpha: float | None = None
    soft_labels: bool | None = None

    def changes(self) -> dict[str, Any]:
        """What was sent, by name."""
        return self.model_dump(exclude_none=True)


class EmptyBody(StrictModel):
    """`{}`: a POST that takes no parameters."""
