"""Rows of the taste benchmarks, one a round."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evaluation import Figures
from benchmarks.row_file import KeyedRows
from dpo_studio.files import canonical_json


@dataclass(frozen=True, slots=True)
class Key:
    """What was done. Two rows with the same key would measure the same thing."""

    kind: str
    """plain, disagree (two halves of opposite voters), rounds (several in a row), then (a change of mind)."""
    taste: str
    """A name of `dpo_studio.tastes`, or two joined by `>` for a change of mind."""
    votes: int
    """Decided votes of every round."""
    flips: float
    round: int
    settings: str
    """TrainSettings and drift budget as canonical JSON."""
    model_sha256: str
    prompts: str
    """File, half and samples a prompt of the evaluation."""
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """What came of it."""

    key: Key
    base: Figures
    live: Figures
    """Of the round's candidate, whether or not the gate let it pass."""
    parts: dict[str, tuple[float, float]]
    """Base and live rate of each taste involved, where there are several."""
    shown: int
    """Comparisons shown for this round's votes."""
    num_pairs: int
    """All pairs of this and the earlier rounds, held-out ones included."""
    num_steps: int
    planned_steps: int
    """More than `num_steps` when the drift guard ended training."""
    kl_per_token: float
    heldout_accuracy: float | None
    passed: bool
    reason: str
    """The first check of the gate that failed, or nothing."""
    seconds: float
    cpu_seconds: float


class RowFile(KeyedRows[Row]):
    """The rows of one file, in order; None keeps them in memory only."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(Row, path)


def settings_text(settings: Mapping[str, Any]) -> str:
    """For `Key.settings`."""
    return canonical_json(dict(settings))
