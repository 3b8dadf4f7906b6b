"""The style of an answer: attributes drawn independently of the content, each with room to move both ways."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Share of answers that carry each attribute; the votes of labelers move these, so none sits near 0 or 1.
RATES = {
    "warm": 0.37,
    "hedged": 0.33,
    "listed": 0.55,
    "question": 0.41,
    "emoji": 0.34,
    "opener": 0.40,
    "example": 0.36,
}
TERSE_SHARE = 0.20  # of the answers are a bare sentence: without them few would be really short


@dataclass(frozen=True)
class Style:
    """How to say it.

    points: how many content points (1 = short); register: neutral, formal or casual; `listed` matters only
    from two points on.
    """

    points: int
    register: str
    warm: bool
    hedged: bool
    listed: bool
    question: bool
    emoji: bool
    opener: bool
    example: bool
    reason: bool


def draw_style(rng: random.Random) -> Style:
    """Every attribute on its own coin, but for the terse answers, which drop whatever makes them long."""
    flag = {name: rng.random() < rate for name, rate in RATES.items()}
    points = rng.choices((1, 2, 3, 4), (0.42, 0.27, 0.20, 0.11))[0]
    reason = rng.random() < 0.22
    if rng.random() < TERSE_SHARE:
        flag.update(warm=False, question=False, example=False)
        points, reason = 1, False
    return Style(
        points=points,
        register=rng.choices(("neutral", "formal", "casual"), (0.40, 0.30, 0.30))[0],
        reason=reason,
        **flag,
    )
