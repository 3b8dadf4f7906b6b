"""Token ids of pairs and rankings, and their layout for one forward pass.

The layout here is the plain one: a row per response, padded on the right. Everything that scores
responses reads only `Batch`, so another layout (`packing`) is another function returning one. The shift by
one (a token is predicted at the position before it) is made where a batch is laid out and nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Causal attention: a position never sees the padding to its right, so any valid id will do.
_PAD_ID = 0


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """A prompt and one response to it, as the model saw them. Neither may be empty."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference pair in token ids, or a ranking: its best and its worst response, and those between."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    chosen_probability: float = 1.0
    """That the chosen response is the better one; its loss is weighed by it (`losses`). 1 for a ranking of
    more than two."""
    between: tuple[tuple[int, ...], ...] = ()
    """Responses worse than the chosen and better than the rejected one, best first; empty for a pair."""

    @property
    def responses(self) -> tuple[tuple[int, ...], ...]:
        """Best to worst."""
        return (self.chosen, *self.between, self.rejected)

    @property
    def sequences(self) -> tuple[TokenSequence, ...]:
        """One for each response, best to worst."""
        return tuple(TokenSequence(self.prompt, response) for response in self.responses)

    def __len__(self) -> int:
        """Tokens of the longest of its sequences."""
        return len(self.prompt) + max(map(len, self.responses))


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of one row's tokens: causal in itself, after all of an earlier run of the same row."""

    start: int
    length: int
    prefix_start: int = 0
    prefix_length: int = 0
    """0: it sees only itself."""

    @property
    def end(self) -> int:
        return self.start + self.length


class SegmentTable:
    """The segments of one row, in order and without gaps, and what attention derives from them once.

    Lives as long as its batch, so that the layers of a forward share the masks and indices.
    """

    __slots__ = ("derived", "segments")

    def __init__(self, segments: tuple[Segment, ...]) -> None:
        self.segments = segments
        self.derived: dict[Any, Any] = {}
        """Whatever `segment_attention` keeps here; nothing else reads it."""

    @property
    def num_tokens(self) -> int:
        return self.segments[-1].end


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences laid out for one forward, and where their response tokens are predicted.

    Prompt and padding positions do not appear in `predict_at`, hence never reach the head.
    """

    input_ids: Tensor
    """(rows, seq) int64."""
    predict_at: Tensor
    """(tokens,) int64: index into the flattened (rows · seq) positions whose output predicts a target."""
    targets: Tensor
    """(tokens,) int64: the response tokens, sequence after sequence."""
    lengths: tuple[int, ...]
    """Response tokens of each sequence, in order; they sum to `tokens`."""
    position_ids: Tensor | None = None
    """(rows, seq) int64; None: every row counts from 0."""
    segments: SegmentTable | None = None
    """Who sees whom in the only row; None: every row is causal from its start."""


def pad_sequences(sequences: Sequence[TokenSequence], device: torch.device) -> Batch:
    """One row per sequence, padded on the right to the longest. Raises ValueError for an empty part."""
    for number, sequence in enumerate(sequences):
        if not sequence.prompt or not sequence.response:
            raise ValueError(f"sequence {number}: expected prompt and response tokens, found none of one")
    width = max(len(sequence) for sequence in sequences)
    rows: list[list[int]] = []
    predict_at: list[int] = []
    targets: list[int] = []
    for row, sequence in enumerate(sequences):
        ids = [*sequence.prompt, *sequence.response]
        rows.append(ids + [_PAD_ID] * (width - len(ids)))
        first = row * width + len(sequence.prompt) - 1
        predict_at.extend(range(first, first + len(sequence.response)))
        targets.extend(sequence.response)
    return Batch(
        input_ids=torch.tensor(rows, device=device),
        predict_at=torch.tensor(predict_at, device=device),
        targets=torch.tensor(targets, device=device),
        lengths=tuple(len(sequence.response) for sequence in sequences),
    )


def pad_pairs(pairs: Sequence[TokenPair], device: torch.device) -> Batch:
    """Sequences pair after pair, each best to worst: chosen₀, rejected₀, chosen₁, rejected₁, …"""
    return pad_sequences([sequence for pair in pairs for sequence in pair.sequences], device)


def plan_micro_batches(widths: Sequence[int], rows: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group item indices, longest first, so that no group's padded size exceeds `max_tokens`.

    Item i takes `rows[i]` rows of `widths[i]` tokens. Sorting keeps padding small; longest first lets memory
    run out at once rather than at the end. An item too large by itself still gets its own group.
    """
    order = sorted(range(len(widths)), key=lambda index: (-widths[index], index))
    groups: list[list[int]] = []
    num_rows = 0
    for index in order:
        num_rows += rows[index]
        # Items come in descending width, so a group's width is that of its first item.
        if groups and num_rows * widths[groups[-1][0]] <= max_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
            num_rows = rows[index]
    return groups


def most_responses(pairs: Sequence[TokenPair]) -> int:
    """Of one of them: the columns that a tensor of them needs. 2 for no pairs."""
    return max((len(pair.responses) for pair in pairs), default=2)


def response_lengths(pairs: Sequence[TokenPair]) -> Tensor:
    """(pairs, most responses) float64: response tokens, best to worst; 0 where a pair has no response."""
    rows = torch.zeros(len(pairs), most_responses(pairs), dtype=torch.float64)
    for row, pair in zip(rows, pairs, strict=True):
        row[: len(pair.responses)] = torch.tensor([len(response) for response in pair.responses])
    return rows
