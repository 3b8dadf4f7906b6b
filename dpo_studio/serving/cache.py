"""A KV cache of rows with their own lengths, behind transformers' Cache interface.

Decoding rows are dense (0 … n-1) and each writes at its own position, so nothing is padded and nothing is
copied when a request joins or leaves. One more row, the scratch row, belongs to the prompt being read; it is
copied to as many rows as the request has samples. What lies beyond a row's length is masked by the caller.
"""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

_WIDTH_STEP = 64


@dataclass(slots=True)
class _Plan:
    """Where the current forward writes and what it reads. Shared by all layers."""

    first_row: int = 0
    num_rows: int = 0
    width: int = 0
    start: int = 0
    positions: torch.Tensor | None = None
    """Write position per row when decoding, None when reading a prompt into the scratch row."""
    row_ids: torch.Tensor | None = None


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer: (rows + 1, heads, max_length, head_dim)."""

    def __init__(self, plan: _Plan, num_rows: int, max_length: int) -> None:
        super().__init__()
        self._plan = plan
        self._num_rows = num_rows
        self._max_length = max_length
        self._zeroed = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (
            states.new_empty(self._num_rows + 1, states.shape[1], self._max_length, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self._zero_up_to(self._plan.width)
        return self._write(self.keys, key_states), self._write(self.values, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:  # noqa: ARG002
        return self._plan.width, 0

    def get_seq_length(self) -> int:
        return self._plan.start

    def get_max_length(self) -> int:
        return self._max_length

    def copy_row(self, source: int, targets: list[int], length: int) -> None:
        self.keys[targets, :, :length] = self.keys[source, :, :length]
        self.values[targets, :, :length] = self.values[source, :, :length]

    def _write(self, store: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        plan = self._plan
        if plan.positions is None:
            store[plan.first_row, :, plan.start : plan.start + states.shape[2]] = states[0]
        else:
            store[plan.row_ids, :, plan.positions] = states[:, :, 0]
        return store[plan.first_row : plan.first_row + plan.num_rows, :, : plan.width]

    def _zero_up_to(self, width: int) -> None:
        # Masked garbage is harmless only while it is finite: 0 · NaN is NaN. Zeroing step by step keeps
        # memory that no answer has reached yet unused.
        if width > self._zeroed:
            self.keys[:, :, self._zeroed : width] = 0
            self.values[:, :, self._zeroed : width] = 0
            self._zeroed = width


class SlotCache(Cache):  # type: ignore[misc]
    """`num_rows` decoding rows and the scratch row. Call `begin_…` before each forward of the model."""

    def __init__(self, num_layers: int, num_rows: int, max_length: int) -> None:
        self._plan = _Plan()
        self.num_rows = num_rows
        self.max_length = max_length
        super().__init__(layers=[_SlotLayer(self._plan, num_rows, max_length) for _ in range(num_layers)])

    def begin_prompt(self, start: int, num_tokens: int) -> int:
        """The next forward reads `num_tokens` of the prompt from position `start`. Returns the width."""
        plan = self._plan
        plan.first_row, plan.num_rows, plan.start = self.num_rows, 1, start
        plan.width = self._rounded(start + num_tokens)
        plan.positions = plan.row_ids = None
        return plan.width

    def begin_decode(self, positions: torch.Tensor, last: int) -> int:
        """The next forward adds one token to each of the first rows, at `positions`: (rows,) int64.

        `last` is the largest of them, known to the caller without asking the device.
        """
        plan = self._plan
        plan.first_row, plan.num_rows = 0, positions.shape[0]
        plan.start = last
        plan.width = self._rounded(plan.start + 1)
        plan.positions = positions
        plan.row_ids = torch.arange(positions.shape[0], device=positions.device)
        return plan.width

    def copy_scratch(self, rows: list[int], length: int) -> None:
        """Give `rows` the prompt that was read into the scratch row."""
        for layer in self.layers:
            layer.copy_row(self.num_rows, rows, length)

    def move_row(self, source: int, target: int, length: int) -> None:
        """Overwrite row `target` by row `source`."""
        for layer in self.layers:
            layer.copy_row(source, [target], length)

    def _rounded(self, width: int) -> int:
        # Few distinct shapes; the masked tail does not change bits (measured).
        return min(self.max_length, -(-width // _WIDTH_STEP) * _WIDTH_STEP)
