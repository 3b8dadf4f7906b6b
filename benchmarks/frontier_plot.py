"""The frontier as a picture: reward over KL, a colour for each loss, TRL's points as rings around ours.

matplotlib is imported when asked for; it is no dependency of the studio.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.frontier_rows import LOSSES, Mean, Row

_COLOURS = {"dpo": "#0072B2", "ipo": "#D55E00", "ipo-sum": "#009E73"}
"""Told apart by the colour-blind as well (Okabe and Ito 2008)."""
_INK, _GREY, _FAINT = "#333333", "#888888", "#e6e6e6"
_LINEAR_TO = 1.0
"""Nats up to which the axis is linear; beyond, it is logarithmic."""
_TICKS = (0, 0.5, 1, 2, 5, 10, 20, 50, 100)
_LABELS_AT = {"dpo": (-6, 8, "right"), "ipo": (6, -14, "left"), "ipo-sum": (8, 4, "left")}
"""Where β stands beside its point: points to the right and up, and which end of the text is there."""


def draw(rows: Sequence[Row], path: Path, *, title: str, reward: str) -> None:
    """Write `path` (PNG). `rows`: of one taste and one base. Raises ValueError where base is missing."""
    base = next((row for row in rows if row.key.who == "base"), None)
    if base is None:
        raise ValueError("rows: expected base among them, found none")
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    plt: Any = importlib.import_module("matplotlib.pyplot")
    figure, axes = plt.subplots(figsize=(8, 5.2), dpi=150)
    _prepare(axes, title, reward)
    level = fmean(base.points[-1].rewards)
    axes.axhline(level, color=_GREY, linewidth=0.8, linestyle=(0, (2, 3)), zorder=1)
    axes.plot([0], [level], marker="D", color=_GREY, markersize=6, linestyle="none", label="base", zorder=4)
    for loss in LOSSES:
        _draw_loss(axes, loss, [row for row in rows if row.key.loss == loss])
    highest = max(fmean(point.kls) for row in rows for point in row.points)
    axes.set_xlim(-0.05, 1.5 * max(highest, _LINEAR_TO))
    # Upper left: what no policy reaches.
    axes.legend(frameon=False, loc="upper left", fontsize=9, labelcolor=_INK)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of matplotlib the same rows give the same file.
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _prepare(axes: Any, title: str, reward: str) -> None:
    axes.set_xscale("symlog", linthresh=_LINEAR_TO, linscale=0.6)
    axes.set_xticks(_TICKS, labels=[f"{tick:g}" for tick in _TICKS])
    axes.xaxis.set_minor_locator(importlib.import_module("matplotlib.ticker").NullLocator())
    axes.set_xlabel("KL(policy ‖ base), nats an answer", color=_INK)
    axes.set_ylabel(reward, color=_INK)
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.grid(color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_GREY, labelcolor=_INK, labelsize=9)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(_GREY)


def _draw_loss(axes: Any, loss: str, rows: Sequence[Row]) -> None:
    colour = _COLOURS[loss]
    ours = sorted((row for row in rows if row.key.who == "ours"), key=lambda row: row.key.beta)
    theirs = [row for row in rows if row.key.who == "trl"]
    if ours:
        kls, rewards = _means(ours)
        axes.plot(
            [kl.value for kl in kls],
            [one.value for one in rewards],
            "o-",
            color=colour,
            markersize=6,
            linewidth=1.1,
            label=f"{LOSSES[loss]}, ours",
            zorder=3,
        )
        _whiskers(axes, kls, rewards, colour)
        earlier = [point for row in ours for point in row.points[:-1]]
        axes.plot(
            [fmean(point.kls) for point in earlier],
            [fmean(point.rewards) for point in earlier],
            "o",
            color=colour,
            alpha=0.35,
            markersize=3,
            zorder=2,
        )
        right, up, end = _LABELS_AT[loss]
        for row, kl, one in zip(ours, kls, rewards, strict=True):
            axes.annotate(
                f"β {row.key.beta:g}" if row is ours[0] or row is ours[-1] else f"{row.key.beta:g}",
                (kl.value, one.value),
                xytext=(right, up),
                textcoords="offset points",
                ha=end,
                fontsize=8,
                color=colour,
            )
    if theirs:
        kls, rewards = _means(theirs)
        axes.plot(
            [kl.value for kl in kls],
            [one.value for one in rewards],
            "o",
            markerfacecolor="none",
            markeredgecolor=colour,
            markersize=11,
            label=f"{LOSSES[loss]}, TRL",
            zorder=3,
        )


def _means(rows: Sequence[Row]) -> tuple[list[Mean], list[Mean]]:
    """KL and reward after the last step of each."""
    last = [row.points[-1] for row in rows]
    return [Mean.of(point.kls) for point in last], [Mean.of(point.rewards) for point in last]


def _whiskers(axes: Any, kls: Sequence[Mean], rewards: Sequence[Mean], colour: str) -> None:
    """95 % intervals."""
    axes.errorbar(
        [kl.value for kl in kls],
        [one.value for one in rewards],
        xerr=[kl.half for kl in kls],
        yerr=[one.half for one in rewards],
        fmt="none",
        ecolor=colour,
        alpha=0.3,
        elinewidth=0.9,
        zorder=2,
    )
