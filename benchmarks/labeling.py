"""Simulated people at the label queue: comparisons in, preference pairs out.

Ties are shown and not counted, as in the studio. Several voters take turns on decided comparisons, so each
gives the same number of votes, give or take one, and every comparison has the vote of one person.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.answer_pool import Comparison
from dpo_studio.domain.preference import Choice, PreferencePair
from dpo_studio.tastes import Taste

_OTHER = {Choice.A: Choice.B, Choice.B: Choice.A, Choice.TIE: Choice.TIE}


@dataclass(frozen=True, slots=True)
class Voter:
    """One taste, maybe turned round, and how often it errs."""

    taste: Taste
    flips: float = 0.0
    """Share of decisions that come out wrong."""
    is_opposed: bool = False
    """Votes for whichever answer the taste likes less."""

    def choose(self, comparison: Comparison, rng: random.Random) -> Choice:
        """A, B or a tie; draws one number from `rng`."""
        choice = self.taste.prefers(comparison.a.text, comparison.b.text, self.flips, rng)
        return _OTHER[choice] if self.is_opposed else choice


def vote(
    voters: Sequence[Voter],
    comparisons: Iterable[Comparison],
    num_votes: int,
    rng: random.Random,
    *,
    prefix: str,
) -> tuple[list[PreferencePair], int]:
    """`num_votes` decided votes, and how many comparisons had to be shown. Ids begin with `prefix`."""
    pairs: list[PreferencePair] = []
    shown = 0
    for comparison in comparisons:
        if len(pairs) == num_votes:
            break
        number = len(pairs) % len(voters)
        shown += 1
        choice = voters[number].choose(comparison, rng)
        if choice is Choice.TIE or comparison.a.text.strip() == comparison.b.text.strip():
            continue
        a, b = comparison.a, comparison.b
        chosen, rejected = (a, b) if choice is Choice.A else (b, a)
        name = f"{prefix}-{shown:05d}"
        pairs.append(
            PreferencePair(f"{name}:vote", comparison.messages, chosen, rejected, (name,), (f"{number}",))
        )
    return pairs, shown
