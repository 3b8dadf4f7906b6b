"""Rounds: settings, the job a worker reads, the report it writes, the gate's verdict.

These cross a process border as JSON, so every class here is flat data; `to_json` and `from_json` in
`dpo_studio.domain.codec` refuse unknown and missing keys.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from dpo_studio.errors import BadInput

LossName = Literal["sigmoid", "ipo", "hinge", "robust", "plackett_luce"]
LOSSES_WITH_SMOOTHING: tuple[LossName, ...] = ("sigmoid", "robust")
"""The others refuse `label_smoothing`."""


class RoundStatus(StrEnum):
    """Where a round stands. The last five are final."""

    QUEUED = "queued"
    RUNNING = "running"
    GATING = "gating"
    WAITING = "waiting"
    """Passed the gate; a person must promote or reject it (manual gate)."""
    PROMOTED = "promoted"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"

    @property
    def is_active(self) -> bool:
        """Whether a process is (or should be) working on it."""
        return self in (RoundStatus.QUEUED, RoundStatus.RUNNING, RoundStatus.GATING)


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Hyper-parameters of one DPO round, kept in its record."""

    loss: LossName = "sigmoid"
    """plackett_luce: imported rankings of more than two responses train whole (Rafailov et al. 2023, eq. 20),
    pairs as with sigmoid; with every other loss a ranking trains as all of its pairs."""
    beta: float = 0.1
    """Strength of the pull towards the reference (Rafailov et al. 2023, eq. 7)."""
    label_smoothing: float = 0.0
    """Assumed share of flipped labels: of conservative DPO with the sigmoid loss (0 is plain DPO), of robust
    DPO with the robust loss."""
    length_normalised: bool = False
    """Divide every log-ratio by its response's tokens (TRL's form of ipo). The papers sum."""
    ld_alpha: float = 1.0
    """Length desensitisation: weight of what a response has beyond the length of the other, or of the
    shortest of a ranking; 1 is none."""
    sft_weight: float = 0.0
    """Weight of the mean negative log-likelihood of the chosen response, of a ranking the best."""
    learning_rate: float = 2e-3
    """For models of a few million parameters; above 100M about 5e-5, above 1B 1e-5."""
    epochs: int = 4
    batch_size: int = 8
    """Preference pairs per optimiser step; a ranking that trains whole counts as one."""
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    lora_rank: int = 16
    lora_alpha: int = 32
    max_length: int = 1024
    """Tokens of prompt + response; the prompt is cut from the left, all responses to the same cap."""
    seed: int = 0
    start_from: Literal["base", "live"] = "base"
    """Fresh adapter on base (exact, reproducible), or continue from the live version's adapter."""
    reference: Literal["base", "start"] = "base"
    early_stop_patience: int = 0
    """Epochs without a lower held-out loss after which training ends; the adapter of the epoch with the
    lowest is kept. 0: trains all epochs and keeps the last."""
    soft_labels: bool = False
    """Whether a pair on which labelers disagree is trained as that: with the share of votes for its chosen
    response as the probability that it is the better one. Off: the majority's choice counts as certain."""

    def __post_init__(self) -> None:
        _positive("beta", self.beta, 100.0)
        _positive("learning_rate", self.learning_rate, 1.0)
        _positive("epochs", self.epochs, 100)
        _positive("batch_size", self.batch_size, 1024)
        _positive("lora_rank", self.lora_rank, 512)
        _positive("lora_alpha", self.lora_alpha, 4096)
        _positive("max_length", self.max_length, 131_072)
        if not 0 <= self.early_stop_patience <= 100:
            raise BadInput(f"early_stop_patience: expected 0 to 100, found {self.early_stop_patience}")
        if not 0 <= self.ld_alpha <= 1:
            raise BadInput(f"ld_alpha: expected 0 to 1, found {self.ld_alpha}")
        if not 0 <= self.label_smoothing < 0.5:
            raise BadInput(f"label_smoothing: expected 0 to below 0.5, found {self.label_smoothing}")
        if not 0 <= self.warmup_ratio < 1:
            raise BadInput(f"warmup_ratio: expected 0 to below 1, found {self.warmup_ratio}")


def preset_for(num_parameters: int) -> TrainSettings:
    """Default settings for a base model of this size (0: unknown, taken as large).

    The starter's were measured (docs/training-settings.md): with a small beta a pair is never won, and
    training goes on into the content long after the taste is learnt. The others follow published LoRA
    recipes: about ten times the full fine-tuning rate, falling with size.
    """
    if 0 < num_parameters <= 50_000_000:
        return TrainSettings(beta=1.0)
    if 0 < num_parameters <= 1_500_000_000:
        return TrainSettings(learning_rate=5e-5, epochs=2)
    return TrainSettings(learning_rate=1e-5, epochs=1)


@dataclass(frozen=True, slots=True)
class RoundJob:
    """`job.json`: everything the worker needs beside the two JSONL files."""

    round: int
    model: str
    """Hub id or folder, as the engine loaded it."""
    model_sha256: str
    """The worker refuses to train on other weights than these."""
    settings: TrainSettings
    train_sha256: str
    heldout_sha256: str
    num_train: int
    num_heldout: int
    start_adapter: str | None = None
    """Folder of the adapter to continue from when `settings.start_from` is "live"."""
    live_adapter: str | None = None
    """Folder of the live version's adapter, scored on the held-out pairs for the gate; None for base."""
    probe_prompts: tuple[str, ...] = ()
    """Prompts whose sampled answers tell the gate about the candidate's health."""
    chat_template: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    """As the engine's: log-probabilities must come from the numbers that people's answers come from."""
    threads: int = 0
    """CPU threads for torch; 0 lets the worker choose."""
    reference_cache: str | None = None
    """Folder of reference log-probabilities kept across rounds; None keeps none."""
    code_version: str = ""
    checkpoint_every_s: float = 30.0
    """Seconds of training that a killed worker may lose: started again on the same folder, it goes on from
    its last checkpoint. 0 writes one after every step."""


@dataclass(frozen=True, slots=True)
class StepProgress:
    """One line of `progress.jsonl`. Metric names as in TRL."""

    phase: Literal["loading", "reference", "training", "evaluating", "done"]
    step: int
    num_steps: int
    time: float
    """Seconds since the epoch."""
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class ProbeSummary:
    """Health of sampled answers to the probe prompts, from one version."""

    num_samples: int
    ended_share: float
    """Share that ended with EOS before the cap."""
    looping_share: float
    """Share with a phrase repeated until it fills the answer."""
    empty_share: float
    mean_tokens: float
    kl_per_token: float
    """Monte-Carlo estimate of KL(version ‖ base) per sampled token, nats. 0 for base itself."""


@dataclass(frozen=True, slots=True)
class TrainingFacts:
    """What a round's record keeps of its report, by the same names: how it trained, beside what came out."""

    layout: str
    notes: tuple[str, ...]
    num_truncated: int
    num_dropped: int
    num_reference_computed: int
    num_reference_known: int
    train_seconds: float


@dataclass(frozen=True, slots=True)
class RoundReport:
    """`report.json`: what the worker measured. The gate decides on this alone."""

    ok: bool
    reason: str
    """Empty when ok; else one sentence, e.g. "The loss became NaN at step 12"."""
    num_steps: int
    num_train: int
    num_heldout: int
    num_truncated: int
    num_dropped: int
    train_seconds: float
    metrics: dict[str, float]
    """Final training metrics, `heldout/…` of the candidate, `live/…` of the live version."""
    heldout_margins: tuple[float, ...]
    """Reward margin of the candidate on each held-out pair, in file order (0 pairs: empty); of a ranking that
    of its best over its worst response."""
    live_margins: tuple[float, ...]
    """The same of the live version; empty when live is base, whose margins are all 0."""
    candidate_probe: ProbeSummary | None
    base_probe: ProbeSummary | None
    adapter_sha256: dict[str, str]
    layout: str = ""
    """How pairs were laid out for the model, and why not more cheaply: sentences for people."""
    notes: tuple[str, ...] = ()
    """What else people should know of this training: continued, ended early, short of memory. Sentences."""
    num_reference_computed: int = 0
    """Pairs whose reference log-probabilities were computed in this round."""
    num_reference_known: int = 0
    """Pairs whose reference log-probabilities an earlier round had kept."""

    @property
    def facts(self) -> TrainingFacts:
        """The part that the round's record keeps as it is."""
        return TrainingFacts(**{name: getattr(self, name) for name in TrainingFacts.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's decision."""

    passed: bool
    reasons: tuple[str, ...]
    """Sentences for people: each check, what was found, what was asked."""


def _positive(name: str, value: float, most: float) -> None:
    if not 0 < value <= most:
        raise BadInput(f"{name}: expected above 0 and at most {most}, found {value}")
