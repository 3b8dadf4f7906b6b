"""How pairs are laid out for one forward: three rungs, each exact where the self-check says so.

`PREFIX_SHARED` stores a pair as [prompt, chosen, rejected] in one packed row, `PACKED` as two whole
sequences in one packed row, `PADDED` as two padded rows under the model's own attention, which every
architecture supports. Log-probabilities that are compared must come from one layout: in half precision
another order of sums moves them by more than early margins.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from dpo_studio.dpo.batches import Batch, TokenPair, pad_pairs, plan_micro_batches
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.packing import pack_pairs, plan_bins, share_prefixes

VERSION = 1
"""Part of the key of cached log-probabilities: raise it when a change here moves them."""


class Layout(Protocol):
    """Which pairs go together, and where their tokens stand."""

    @property
    def name(self) -> str: ...

    def size(self, pair: TokenPair) -> int:
        """What `plan` and `num_tokens` count of a pair."""
        ...

    def plan(self, sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
        """Groups of indices; only a group of one pair may process more than `max_tokens`."""
        ...

    def num_tokens(self, sizes: Sequence[int]) -> int:
        """Tokens the model processes, padding included, for one group of pairs of these sizes."""
        ...

    def lay_out(self, pairs: Sequence[TokenPair], device: torch.device) -> Batch:
        """Sequences in the order chosen₀, rejected₀, chosen₁, …"""
        ...


class _PrefixShared:
    name = "prefix-shared"

    def size(self, pair: TokenPair) -> int:
        return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)

    def plan(self, sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
        return plan_bins(sizes, max_tokens)

    def num_tokens(self, sizes: Sequence[int]) -> int:
        return sum(sizes)

    def lay_out(self, pairs: Sequence[TokenPair], device: torch.device) -> Batch:
        return share_prefixes(pairs, device)


class _Packed(_PrefixShared):
    name = "packed"

    def size(self, pair: TokenPair) -> int:
        return 2 * len(pair.prompt) + len(pair.chosen) + len(pair.rejected)

    def lay_out(self, pairs: Sequence[TokenPair], device: torch.device) -> Batch:
        return pack_pairs(pairs, device)


class _Padded:
    name = "padded"

    def size(self, pair: TokenPair) -> int:
        return len(pair)

    def plan(self, sizes: Sequence[int], max_tokens: int) -> list[list[int]]:
        return plan_micro_batches(sizes, max_tokens, rows_each=2)

    def num_tokens(self, sizes: Sequence[int]) -> int:
        return 2 * len(sizes) * max(sizes)

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
    """(pairs, 2) float64: summed log-probabilities of chosen and rejected. Gradients flow to the model.

    tail_weight: factor on what the longer response has beyond the length of the shorter one; 1 for the
    plain sum, less for length desensitisation (LD-DPO, Liu et al. 2024, arXiv 2409.06411, eq. 10).
    """
    device = next(scorer.model.parameters()).device
    batch = layout.lay_out(pairs, device)
    if tail_weight == 1.0:
        return scorer.sequence_logps(batch).view(-1, 2)
    shared = [min(len(pair.chosen), len(pair.rejected)) for pair in pairs for _ in range(2)]
    parts = torch.split(scorer.token_logps(batch).double(), list(batch.lengths))
    sums = [part[:n].sum() + tail_weight * part[n:].sum() for part, n in zip(parts, shared, strict=True)]
    return torch.stack(sums).view(-1, 2)
