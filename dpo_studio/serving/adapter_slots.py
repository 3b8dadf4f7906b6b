"""LoRA versions side by side in a fixed number of slots: one masked pair of products serves all of them.

Every linear layer holds the factors of all slots stacked, A: (slots · rank, in), B: (out, slots · rank) with
the scaling folded into B. A row's mask lets only its own slot through, so a row's numbers do not depend on
the versions of its neighbours, and the base weights are never touched. Writing a slot is a copy between two
steps; the caller guarantees that no running row uses it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from dpo_studio.errors import ModelError
from dpo_studio.modeling.adapter_files import LoraPair

_RANK_STEP = 8


@dataclass(slots=True)
class _Routing:
    """Which slot each row of the current forward uses."""

    mask: torch.Tensor | None = None
    """(batch, 1, slots · rank), None when every row is base."""


class RoutedLinear(nn.Module):
    """A linear layer plus the adapters of all slots."""

    def __init__(self, base: nn.Module, routing: _Routing) -> None:
        super().__init__()
        self.base = base
        self._routing = routing
        self.a: torch.Tensor | None = None
        self.b: torch.Tensor | None = None

    @property
    def weight(self) -> Any:
        """Some models look at their layers' dtype or device through it."""
        return self.base.weight

    @property
    def bias(self) -> Any:
        return self.base.bias

    @property
    def features(self) -> tuple[int, int]:
        """(in, out); Conv1D stores its weight the other way round, a 4-bit layer in no shape."""
        if isinstance(self.base, nn.Linear):
            return self.base.in_features, self.base.out_features
        first, second = self.weight.shape
        return first, second

    @property
    def dtype(self) -> torch.dtype:
        """Of the factors: as the layer computes, which for a 4-bit one is not the dtype of its bytes."""
        found: torch.dtype = getattr(self.base, "compute_dtype", None) or self.weight.dtype
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.base(x)
        mask = self._routing.mask
        if mask is None or self.a is None or self.b is None:
            return y
        if x.dim() == 2:
            # Some blocks flatten (batch, query) before their linear layers.
            mask = mask.squeeze(1).repeat_interleave(x.shape[0] // mask.shape[0], 0)
        return y + (nn.functional.linear(x, self.a) * mask) @ self.b.T

    @torch.no_grad()
    def write(self, pair: LoraPair | None, slot: int, num_slots: int, rank: int) -> None:
        """Put a pair, or nothing, into `slot`, where each slot has room for `rank`."""
        if pair is None and self.a is None:
            return
        self._make_room(num_slots, rank)
        assert self.a is not None and self.b is not None
        start = slot * rank
        self.a[start : start + rank] = 0
        self.b[:, start : start + rank] = 0
        if pair is not None:
            end = start + pair.a.shape[0]
            self.a[start:end] = pair.a
            self.b[:, start:end] = pair.b.float() * pair.scaling

    def _make_room(self, num_slots: int, rank: int) -> None:
        if self.a is not None and self.a.shape[0] == num_slots * rank:
            return
        num_in, num_out = self.features
        a = torch.zeros(num_slots, rank, num_in, dtype=self.dtype, device=self.weight.device)
        b = torch.zeros(num_out, num_slots, rank, dtype=self.dtype, device=self.weight.device)
        if self.a is not None and self.b is not None:
            old = self.a.shape[0] // num_slots
            a[:, :old] = self.a.view(num_slots, old, num_in)
            b[:, :, :old] = self.b.view(num_out, num_slots, old)
        self.a, self.b = a.view(num_slots * rank, num_in), b.view(num_out, num_slots * rank)


class AdapterSlots:
    """All linear layers of one model, wrapped in place, with `num_slots` slots."""

    def __init__(self, model: nn.Module, num_slots: int) -> None:
        self.num_slots = num_slots
        self._routing = _Routing()
        self._rank = _RANK_STEP
        self._layers: dict[str, RoutedLinear] = {}
        head = model.get_output_embeddings()  # type: ignore[operator]
        for name, module in list(model.named_modules()):
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head:
                routed = RoutedLinear(module, self._routing)
                parent, _, child = name.rpartition(".")
                setattr(model.get_submodule(parent), child, routed)
                self._layers[name] = routed

    def check(self, pairs: Mapping[str, LoraPair]) -> None:
        """Refuse an adapter that does not fit this model. Touches nothing; safe on any thread."""
        for name, pair in pairs.items():
            layer = self._layers.get(name)
            if layer is None:
                raise ModelError(
                    f"adapter: expected linear layers of this model, found {name}, which is none of them; "
                    "serve the model that it was trained on"
                )
            if (pair.a.shape[1], pair.b.shape[0]) != layer.features:
                raise ModelError(
                    f"adapter: expected {layer.features[0]} → {layer.features[1]} features for {name}, found "
                    f"{pair.a.shape[1]} → {pair.b.shape[0]}; serve the model that it was trained on"
                )

    def write(self, slot: int, pairs: Mapping[str, LoraPair]) -> None:
        """Replace the content of `slot`."""
        assert 0 <= slot < self.num_slots
        largest = max(pair.a.shape[0] for pair in pairs.values())
        rank = max(self._rank, -(-largest // _RANK_STEP) * _RANK_STEP)
        for name, layer in self._layers.items():
            if rank > self._rank and layer.a is not None:
                layer._make_room(self.num_slots, rank)
            layer.write(pairs.get(name), slot, self.num_slots, rank)
        self._rank = rank

    def route(self, slots: Sequence[int], device: torch.device, dtype: torch.dtype) -> None:
        """Set the slot of each row (-1: base) for the next forward."""
        if all(slot < 0 for slot in slots):
            self._routing.mask = None
            return
        index = torch.tensor(slots).unsqueeze(-1)
        mask = (index == torch.arange(self.num_slots)).to(dtype).repeat_interleave(self._rank, -1)
        self._routing.mask = mask.unsqueeze(1).to(device)
