"""Rows of the frontier benchmark, one a training, and what they say.

A row keeps what every held-out prompt gave, so that two policies can be compared prompt by prompt.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from benchmarks import markdown
from benchmarks.intervals import Z95
from benchmarks.row_file import KeyedRows

LOSSES = {"dpo": "DPO", "ipo": "IPO, per token", "ipo-sum": "IPO, sums"}
"""How a loss is called in tables and plots. `ipo-sum` is the paper's form, which TRL has not."""
SIDES = {"base": "base", "ours": "ours", "trl": "TRL"}


@dataclass(frozen=True, slots=True)
class Key:
    """What was trained and how it is measured. Two rows with the same key would say the same thing."""

    taste: str
    """Whose score is the reward."""
    loss: str
    """A name of LOSSES; empty for base."""
    beta: float
    """0 for base."""
    who: str
    """base, ours or trl."""
    settings: str
    """TrainSettings as canonical JSON; empty for base."""
    data: str
    """Number and seed of the pairs, and the scale of their labels; empty for base."""
    model_sha256: str
    prompts: str
    """File, half and samples a prompt of the measurement."""


@dataclass(frozen=True, slots=True)
class Point:
    """A policy after some steps, measured on the held-out prompts."""

    step: int
    """0 for base."""
    rewards: tuple[float, ...]
    """Mean reward of the answers to each prompt."""
    kls: tuple[float, ...]
    """Mean log π/π_base of the answers to each prompt, nats an answer; their mean estimates KL(π ‖ base)."""
    tokens: float
    """Mean tokens of an answer."""


@dataclass(frozen=True, slots=True)
class Row:
    """One training."""

    key: Key
    points: tuple[Point, ...]
    """In order of steps; the last is the policy that came out."""
    losses: tuple[float, ...]
    """Of every step; empty for base."""
    cpu_seconds: float
    """Of the training, without measuring."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over prompts and its 95 % interval, by the normal law."""

    value: float
    half: float
    """Half of the interval's width; nan for a single prompt."""

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Answers to one prompt may be alike, so `values` are one a prompt."""
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return cls(fmean(values), Z95 * error)

    def show(self, places: int, *, sign: bool = False) -> str:
        """E.g. 0.62 ± 0.03."""
        return f"{self.value:{'+' if sign else ''}.{places}f} ± {self.half:.{places}f}"


class RowFile(KeyedRows[Row]):
    """The rows of one file, in order; None keeps them in memory only."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(Row, path)


def points_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a Markdown table: reward and KL after the last step of each training."""
    yield from markdown.head(
        "taste", "loss", "β", "who", "steps", "reward (95 %)", "KL, nats an answer (95 %)", "tokens", "CPU-s"
    )
    for row in rows:
        last = row.points[-1]
        is_base = row.key.who == "base"
        yield markdown.line(
            row.key.taste,
            LOSSES.get(row.key.loss, ""),
            "" if is_base else f"{row.key.beta:g}",
            SIDES[row.key.who],
            last.step,
            Mean.of(last.rewards).show(3),
            "0" if is_base else Mean.of(last.kls).show(2),
            f"{last.tokens:.0f}",
            "" if is_base else f"{row.cpu_seconds:.0f}",
        )


def parity_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of a Markdown table: our trainings less TRL's, where there are both. No lines when nowhere.

    Both sides answer with the same random numbers, so the intervals are those of differences within prompts.
    """
    pairs = list(_both(rows))
    if not pairs:
        return
    yield from markdown.head(
        "loss",
        "β",
        "reward: ours − TRL (95 %)",
        "KL: ours − TRL (95 %)",
        "largest gap of a step's loss",
        "relative",
        "CPU-s: ours, TRL",
    )
    for ours, trl in pairs:
        gap, relative = loss_gap(ours.losses, trl.losses)
        a, b = ours.points[-1], trl.points[-1]
        yield markdown.line(
            LOSSES[ours.key.loss],
            f"{ours.key.beta:g}",
            _difference(a.rewards, b.rewards).show(3, sign=True),
            _difference(a.kls, b.kls).show(2, sign=True),
            f"{gap:.1e}",
            f"{relative:.1e}",
            f"{ours.cpu_seconds:.0f}, {trl.cpu_seconds:.0f}",
        )


def loss_gap(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """The largest |a − b| of a step, and the largest |a − b| / |b|. Raises ValueError for unequal steps."""
    gaps = [(abs(a - b), abs(a - b) / max(abs(b), 1e-12)) for a, b in zip(ours, theirs, strict=True)]
    return max(gap for gap, _ in gaps), max(relative for _, relative in gaps)


def _both(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    trl = {(row.key.taste, row.key.settings): row for row in rows if row.key.who == "trl"}
    for row in rows:
        other = trl.get((row.key.taste, row.key.settings))
        if row.key.who == "ours" and other is not None:
            yield row, other


def _difference(a: Sequence[float], b: Sequence[float]) -> Mean:
    return Mean.of([x - y for x, y in zip(a, b, strict=True)])
