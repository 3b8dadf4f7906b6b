"""From votes to preference pairs: the pure rule.

Votes are the truth and are never rewritten; pairs are derived when a round is snapshotted. One
comparison gives its pairs by majority over its labelers' current votes.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from dpo_studio.domain.chat import Message
from dpo_studio.errors import BadInput


class Choice(StrEnum):
    """A labeler's judgement of a comparison."""

    A = "a"
    B = "b"
    TIE = "tie"
    BOTH_BAD = "both_bad"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class SampledText:
    """One side of a comparison or pair. `token_ids` is None for text that no model of ours sampled."""

    text: str
    token_ids: tuple[int, ...] | None = None
    version: str = ""
    """Version that sampled it; empty for edits and imports."""


@dataclass(frozen=True, slots=True)
class VoteRecord:
    """The current state of one labeler's vote on one comparison."""

    vote_id: str
    labeler: str
    choice: Choice
    edited: str | None = None
    """A better answer, written by the labeler."""


@dataclass(frozen=True, slots=True)
class JudgedComparison:
    """A comparison with all its current, not excluded, votes (oldest first)."""

    comparison_id: str
    messages: tuple[Message, ...]
    a: SampledText
    b: SampledText
    votes: tuple[VoteRecord, ...]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """(prompt, chosen, rejected) with where it came from; or a ranking, with the responses between those."""

    pair_id: str
    """Stable: the source's id and which of its pairs this is."""
    messages: tuple[Message, ...]
    chosen: SampledText
    rejected: SampledText
    vote_ids: tuple[str, ...]
    labelers: tuple[str, ...]
    chosen_probability: float = 1.0
    """That the chosen response is the better one, 0 to 1; below 1 where labelers disagreed. Whether a round
    uses it is one of its settings."""
    between: tuple[SampledText, ...] = ()
    """Responses worse than the chosen and better than the rejected one, best first; empty for a pair."""

    def __post_init__(self) -> None:
        if not 0 <= self.chosen_probability <= 1:
            raise BadInput(f"chosen_probability: expected 0 to 1, found {self.chosen_probability}")
        if self.between and self.chosen_probability != 1:
            raise BadInput(
                "chosen_probability: expected 1 for a ranking of more than two responses, found"
                f" {self.chosen_probability}"
            )

    @property
    def responses(self) -> tuple[SampledText, ...]:
        """Best to worst."""
        return (self.chosen, *self.between, self.rejected)


def pairs_of(comparison: JudgedComparison) -> tuple[PreferencePair, ...]:
    """The trainable pairs of one comparison; empty when people tied, skipped or disagreed evenly.

    The winning choice is the one with strictly more votes than any other, skips not counted. An edit of
    the newest vote with that choice joins in: edit ≻ winner and winner ≻ loser; for "both bad" edit ≻ a
    and edit ≻ b (an edit equal to a side gives no pair with it). Sides of the same text give nothing.

    The pair of the two sides carries the share of votes for its chosen response, a tie counting half for
    each; an edit is sure to be better than what it mends.
    """
    votes = [vote for vote in comparison.votes if vote.choice is not Choice.SKIP]
    winner = _majority([vote.choice for vote in votes])
    if winner is None or winner is Choice.TIE:
        return ()
    supporters = [vote for vote in votes if vote.choice is winner]
    edit = next((vote.edited for vote in reversed(supporters) if vote.edited), None)
    edited = SampledText(edit) if edit else None
    a, b = comparison.a, comparison.b
    if winner is Choice.BOTH_BAD:
        candidates = [("edit-a", edited, a), ("edit-b", edited, b)]
    else:
        won, lost = (a, b) if winner is Choice.A else (b, a)
        candidates = [("vote", won, lost), ("edit", edited, won)]
    return tuple(
        PreferencePair(
            pair_id=f"{comparison.comparison_id}:{kind}",
            messages=comparison.messages,
            chosen=chosen,
            rejected=rejected,
            vote_ids=tuple(vote.vote_id for vote in supporters),
            labelers=tuple(vote.labeler for vote in supporters),
            chosen_probability=_share_of(winner, votes) if kind == "vote" else 1.0,
        )
        for kind, chosen, rejected in candidates
        if chosen is not None and chosen.text.strip() != rejected.text.strip() and chosen.text.strip()
    )


def _share_of(side: Choice, votes: Sequence[VoteRecord]) -> float:
    """Of the votes that compare the sides, those for `side`; at least one is."""
    count = Counter(vote.choice for vote in votes)
    ties = count[Choice.TIE]
    return (count[side] + ties / 2) / (count[Choice.A] + count[Choice.B] + ties)


def _majority(choices: Sequence[Choice]) -> Choice | None:
    ranked = Counter(choices).most_common(2)
    if not ranked or (len(ranked) == 2 and ranked[0][1] == ranked[1][1]):
        return None
    return ranked[0][0]
