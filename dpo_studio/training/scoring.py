"""Scores of a round's pairs: the reference's, kept across rounds, and those of any version."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpo_studio.dpo.batches import TokenPair, most_responses
from dpo_studio.dpo.evaluate import score_pairs
from dpo_studio.dpo.layouts import VERSION as LAYOUT_VERSION
from dpo_studio.dpo.layouts import Layout
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.training.reference_cache import ReferenceCache, ReferenceKey
from dpo_studio.training.surroundings import Surroundings


class RoundScores:
    """Scores pairs in one layout, with whatever model it is given."""

    def __init__(self, around: Surroundings, layout: Layout, reference_cache: str | None) -> None:
        """reference_cache: folder of what earlier rounds kept; None keeps and finds nothing."""
        self._around = around
        self._layout = layout
        self._cache_folder = reference_cache
        self.num_computed = 0
        """Pairs that `of_reference` has had to score."""
        self.num_known = 0
        """Pairs that it has found instead."""

    def of(
        self,
        model: Any,
        pairs: Sequence[TokenPair],
        *,
        tail_weight: float = 1.0,
        on_scored: Callable[[int], None] = lambda _: None,
    ) -> Tensor:
        """Summed log-probabilities under `model`, as `score_pairs` gives them. Raises TrainingCancelled."""
        around = self._around
        return score_pairs(
            ResponseScorer(model),
            pairs,
            around.budget,
            layout=self._layout,
            tail_weight=tail_weight,
            world=around.world,
            should_stop=around.cancellation.requested,
            on_scored=on_scored,
        )

    def of_reference(
        self, model: Any, pairs: Sequence[TokenPair], tail_weight: float = 1.0, adapter_sha256: str = ""
    ) -> Tensor:
        """The same, but scoring only what no earlier round has; reports how far it is.

        adapter_sha256: of the adapter that `model` carries; empty for base.
        """
        around, num_pairs = self._around, len(pairs)
        cache = self._cache(tail_weight, adapter_sha256)
        logps = torch.full((num_pairs, most_responses(pairs)), math.nan, dtype=torch.float64)
        if cache is not None:
            # The main process reads for all, or two could disagree about which pairs are left to score.
            found = cache.find(pairs) if around.is_main else torch.zeros_like(logps)
            logps = around.world.sum(found.to(around.base.device)).cpu()
        missing = logps.isnan().any(dim=1).nonzero().flatten().tolist()
        num_known = num_pairs - len(missing)
        self.num_known += num_known
        self.num_computed += len(missing)
        around.progress.report("reference", num_known, num_pairs)
        scored = self.of(
            model,
            [pairs[index] for index in missing],
            tail_weight=tail_weight,
            on_scored=lambda done: around.progress.report("reference", num_known + done, num_pairs),
        )
        logps[missing] = F.pad(scored, (0, logps.shape[1] - scored.shape[1]))
        if cache is not None and around.is_main and missing:
            cache.keep(pairs, logps)
        return logps

    def _cache(self, tail_weight: float, adapter_sha256: str) -> ReferenceCache | None:
        base = self._around.base
        if self._cache_folder is None:
            return None
        key = ReferenceKey(
            model_sha256=base.model_sha256,
            adapter_sha256=adapter_sha256,
            dtype=base.precision,
            device=base.device.type,
            layout=self._layout.name,
            layout_version=LAYOUT_VERSION,
            tail_weight=tail_weight,
        )
        return ReferenceCache(Path(self._cache_folder), key)
