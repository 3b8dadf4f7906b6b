"""What services hand to pages, routes and commands: frozen, complete, free of database rows.

A comparison's view is blind: it carries no version names until the vote is in.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from dpo_studio.domain.chat import EngineStatus, Message
from dpo_studio.domain.round import LossName, RoundStatus, StepProgress, TrainingFacts, TrainSettings, Verdict

GateMode = Literal["auto", "manual"]


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """A comparison as its labeler sees it, maybe still being written."""

    id: str
    messages: tuple[Message, ...]
    a: str
    b: str
    ready: bool
    """Both texts are complete: a vote is accepted."""
    source: str = "queue"


@dataclass(frozen=True, slots=True)
class VoteView:
    """A vote that is durable, and what it was about."""

    vote_id: str
    comparison_id: str
    choice: str
    version_a: str
    version_b: str
    is_new: bool
    """False when the same vote had been given before."""


@dataclass(frozen=True, slots=True)
class LabelProgress:
    """Counts for the label page."""

    today: int
    total: int
    team_total: int
    new_pairs: int
    """Trainable pairs since the last round."""
    min_new_pairs: int
    ready: int
    """Comparisons waiting, complete, for this labeler."""


@dataclass(frozen=True, slots=True)
class GenerationView:
    """Answers being written, one text per sample. The last view of a stream has `done`."""

    texts: tuple[str, ...]
    version: str
    done: bool
    num_tokens: tuple[int, ...] = ()
    finish_reasons: tuple[str, ...] = ()
    seed: int | None = None
    num_prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class VersionView:
    """One version that can be served."""

    name: str
    round: int | None
    created_at: datetime | None
    is_live: bool
    is_loaded: bool
    num_pairs: int
    heldout_accuracy: float | None


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """When rounds start by themselves, and what happens after the gate."""

    enabled: bool
    interval_minutes: int
    min_new_pairs: int
    gate: GateMode


@dataclass(frozen=True, slots=True)
class TrainingChoice:
    """What people decide of a round's training; `TrainSettings` says what each one means."""

    loss: LossName
    beta: float
    label_smoothing: float
    sft_weight: float
    learning_rate: float
    epochs: int
    lora_rank: int
    early_stop_patience: int
    ld_alpha: float
    soft_labels: bool


@dataclass(frozen=True, slots=True)
class TrainingView:
    """How the next rounds train."""

    choice: TrainingChoice
    preset: TrainingChoice
    """What they do when nobody chooses: it depends on the model's size."""


@dataclass(frozen=True, slots=True)
class RoundView:
    """One round's record."""

    number: int
    status: RoundStatus
    trigger: str
    """`schedule`, or who pressed "Train now"."""
    reason: str
    """Why it ended as it did, or how often it was interrupted; else empty while it runs."""
    num_pairs: int
    num_train: int
    num_heldout: int
    settings: TrainSettings
    metrics: dict[str, float]
    verdict: Verdict | None
    version: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    training: TrainingFacts | None = None
    """How it trained; None until its worker has reported, and of rounds from before this was kept."""
    progress: StepProgress | None = None
    """Latest step while it runs."""
    is_cancelling: bool = False
    """Somebody asked it to stop; it ends after the step it is in."""


@dataclass(frozen=True, slots=True)
class StudioStatus:
    """Everything a header or a status route shows."""

    live: str
    engine: EngineStatus
    new_pairs: int
    schedule: ScheduleView
    round: RoundView | None
    """The active round, or one that waits for a person; None otherwise."""
    next_run_at: datetime | None
    storage: str
    detail: str = ""
    """Why the live pointer's version does not answer, when it does not."""


@dataclass(frozen=True, slots=True)
class RoundsView:
    """Everything that a page about rounds shows."""

    status: StudioStatus
    rounds: tuple[RoundView, ...]
    """Newest first."""
    versions: tuple[VersionView, ...]
    """Base first."""
