"""Many pairs in one row: which pairs share a row, and where their tokens stand in it.

A row is a run of segments. A segment is causal in itself and may first see a prefix: an earlier segment of
the same row. Prefix-shared, a pair is [prompt, chosen, rejected] with the prompt stored once and both
responses behind it at the same positions; packed, it is two whole sequences. A ranking of more responses is
the same with more of them. No token of one pair ever sees another pair, and nothing is padded.
"""

from collections.abc import Sequence

import torch

from dpo_studio.dpo.batches import Batch, Segment, SegmentTable, TokenPair, TokenSequence


def plan_bins(sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Group item indices so that no group holds more than `max_tokens`, by first-fit decreasing.

    The largest come first, so that memory runs out at once or not at all. An item too large by itself
    still gets its own group. Equal sizes keep their order, so the plan depends on nothing but its arguments.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        fitting = next((b for b, free in enumerate(room) if sizes[index] <= free), None)
        if fitting is None:
            bins.append([])
            room.append(max_tokens)
            fitting = len(bins) - 1
        bins[fitting].append(index)
        room[fitting] -= sizes[index]
    return bins


def share_prefixes(pairs: Sequence[TokenPair], device: torch.device) -> Batch:
    """One row [prompt, chosen, rejected | …]. Sequences in the order of `pad_pairs`.

    The first token of every response is predicted at the prompt's last position.
    Raises ValueError for an empty part.
    """
    row = _Row()
    for number, pair in enumerate(pairs):
        if not pair.prompt or not all(pair.responses):
            raise ValueError(f"pair {number}: expected tokens of prompt and responses, found none of one")
        prompt = row.add(pair.prompt)
        for response in pair.responses:
            start = row.add(response, behind=prompt).start
            row.score(response, at=[prompt.end - 1, *range(start, start + len(response) - 1)])
    return row.batch(device)


def pack_sequences(sequences: Sequence[TokenSequence], device: torch.device) -> Batch:
    """One row of whole sequences, one after another. Raises ValueError for an empty part."""
    row = _Row()
    for number, sequence in enumerate(sequences):
        if not sequence.prompt or not sequence.response:
            raise ValueError(f"sequence {number}: expected prompt and response tokens, found none of one")
        end = row.add((*sequence.prompt, *sequence.response)).end
        row.score(sequence.response, at=range(end - len(sequence.response) - 1, end - 1))
    return row.batch(device)


def pack_pairs(pairs: Sequence[TokenPair], device: torch.device) -> Batch:
    """Sequences in the order of `pad_pairs`; a prompt is stored once for every response to it."""
    return pack_sequences([sequence for pair in pairs for sequence in pair.sequences], device)


class _Row:
    """A row while it is being filled."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._positions: list[int] = []
        self._segments: list[Segment] = []
        self._predict_at: list[int] = []
        self._targets: list[int] = []
        self._lengths: list[int] = []

    def add(self, ids: Sequence[int], *, behind: Segment | None = None) -> Segment:
        """Append a segment that continues `behind`, or starts a text of its own."""
        seen = behind.length if behind else 0
        segment = Segment(len(self._ids), len(ids), behind.start if behind else 0, seen)
        self._ids.extend(ids)
        self._positions.extend(range(seen, seen + len(ids)))
        self._segments.append(segment)
        return segment

    def score(self, response: Sequence[int], *, at: Sequence[int]) -> None:
        """Name the positions that predict a response's tokens."""
        self._predict_at.extend(at)
        self._targets.extend(response)
        self._lengths.append(len(response))

    def batch(self, device: torch.device) -> Batch:
        return Batch(
            input_ids=torch.tensor([self._ids], device=device),
            predict_at=torch.tensor(self._predict_at, device=device),
            targets=torch.tensor(self._targets, device=device),
            lengths=tuple(self._lengths),
            position_ids=torch.tensor([self._positions], device=device),
            segments=SegmentTable(tuple(self._segments)),
        )
