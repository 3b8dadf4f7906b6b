"""How pairs are laid out for one forward: three rungs, each exact where the self-check says so.

`PREFIX_SHARED` stores a pair as [prompt, chosen, rejected] in one packed row, `PACKED` as two whole
sequences in one packed row, `PADDED` as two padded rows under the model's own attention, which every
architecture supports; a ranking takes more responses, sequences or rows. Log-probabilities that are compared
must come from one layout: in half precision another order of sums moves them by more than early margins.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dpo_studio.dpo.batches import Batch, TokenPair, pad_pairs, plan_micro_batches
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.packing import pack_pairs, plan_bins, share_prefixes

VERSION = 1
"""Part of the key of cached log-probabilities: raise it when a change here moves them."""


class Size(NamedTuple):
    """What planning counts of a pair."""

    rows: int
    """Of a padded batch; 1 where all pairs share one row."""
    tokens: int
    """Of each of its rows."""


class Layout(Protocol):
    """Which pairs go together, and where their tokens stand."""

    @property
    def name(self) -> str: ...

    def size(self, pair: TokenPair) -> Size:
        """What `plan` and `num_tokens` count of a pair."""
        ...

    def plan(self, sizes: Sequence[Size], max_tokens: int) -> list[list[int]]:
        """Groups of indices; only a group of one pair may process more than `max_tokens`."""
        ...

    def num_tokens(self, sizes: Sequence[Size]) -> int:
        """Tokens the model processes, padding included, for one group of pairs of these sizes."""
        ...

    def lay_out(self, pairs: Sequence[TokenPair], device: torch.device) -> Batch:
        """Sequences in the order of `pad_pairs`."""
        ...


class _PrefixShared:
    name = "prefix-shared"

    def size(self, pair: TokenPair) -> Size:
        return Size(1, len(pair.prompt) + sum(map(len, pair.responses)))

    def plan(self, sizes: Sequence[Size], max_tokens: int) -> list[list[int]]:
        return plan_bins([size.tokens for size in sizes], max_tokens)

    def num_tokens(self, sizes: Sequence[Size]) -> int:
        return sum(size.tokens for size in sizes)

    def lay_out(self, pairs: Sequence[TokenPair], device: torch.device) -> Batch:
        return share_prefixes(pairs, device)


class _Packed(_PrefixShared):
    name = "packed"

    def size(self, pair: TokenPair) -> Size:
        return Size(1, sum(map(len, pair.sequences)))

    def lay_out(self, pairs: Sequence[TokenPair], device: torch.device) -> Batch:
        return pack_pairs(pairs, device)


class _Padded:
    name = "padded"

    def size(self, pair: TokenPair) -> Size:
        return Size(len(pair.responses), len(pair))

    def plan(self, sizes: Sequence[Size], max_tokens: int) -> list[list[int]]:
        return plan_micro_batches([size.tokens for size in sizes], [size.rows for size in sizes], max_tokens)

    def num_tokens(self, sizes: Sequence[Size]) -> int:
        return sum(size.rows for size in sizes) * max(size.tokens for size in sizes)

    def lay_out(self, pairs: Sequence[TokenPair], device: torch.device) -> Batch:
        return pad_pairs(pairs, device)


PREFIX_SHARED: Layout = _PrefixShared()
PACKED: Layout = _Packed()
PADDED: Layout = _Padded()
LADDER: tuple[Layout, ...] = (PREFIX_SHARED, PACKED, PADDED)
"""Cheapest first. The last needs no check: it is what the others are checked against."""


def pair_logps(
    scorer: ResponseScorer, pairs: Sequence[TokenPair], layout: Layout, *, tail_weight: float = 1.0
) -> Tensor:
    """(pairs, most responses) float64: summed log-probabilities, best to worst. Gradients flow to the model.

    0 where a pair has fewer responses than another; two columns, chosen and rejected, when all are pairs.

    tail_weight: factor on what a response has beyond the length of the shortest to its prompt; 1 for the
    plain sum, less for length desensitisation (LD-DPO, Liu et al. 2024, arXiv 2409.06411, eq. 10).
    """
    device = next(scorer.model.parameters()).device
    batch = layout.lay_out(pairs, device)
    counts = [len(pair.responses) for pair in pairs]
    if tail_weight == 1.0:
        logps = scorer.sequence_logps(batch)
    else:
        shared = [min(map(len, pair.responses)) for pair in pairs for _ in pair.responses]
        parts = torch.split(scorer.token_logps(batch).double(), list(batch.lengths))
        sums = [part[:n].sum() + tail_weight * part[n:].sum() for part, n in zip(parts, shared, strict=True)]
        logps = torch.stack(sums)
    return pad_sequence(list(torch.split(logps, counts)), batch_first=True)
