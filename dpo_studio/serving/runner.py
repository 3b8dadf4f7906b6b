"""Forward passes for the engine: one prompt chunk into the scratch row, or one token for each running row.

`SlotRunner` decodes all rows in one batch over a `SlotCache`. `PlainRunner` gives each row a cache of the
model's own kind and decodes them one after another: slower, for models that no slot cache can serve. Both are
used from one thread only.
"""

import copy
import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from dpo_studio.serving.adapter_slots import AdapterSlots
from dpo_studio.serving.cache import SlotCache
from dpo_studio.serving.masks import MaskStyle, causal_mask


class Runner(Protocol):
    """What the engine needs of a model."""

    num_rows: int
    max_length: int
    """Tokens of prompt and answer together."""

    def prefill(self, ids: Sequence[int], start: int, slot: int) -> torch.Tensor:
        """Read `ids` of the prompt from position `start`. Returns the last token's logits: (1, vocab)."""
        ...

    def place(self, rows: list[int], length: int) -> None:
        """Give `rows` the prompt of `length` tokens that was just read."""
        ...

    def decode(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> torch.Tensor:
        """Add one token to each of the first rows. Returns (rows, vocab) logits."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Overwrite row `target` by row `source`, of `length` tokens."""
        ...


class SlotRunner:
    """All rows in one batch."""

    def __init__(
        self,
        model: Any,
        slots: AdapterSlots,
        style: MaskStyle,
        *,
        num_layers: int,
        num_rows: int,
        max_length: int,
    ) -> None:
        self._model = model
        self._slots = slots
        self._style = style
        self._cache = SlotCache(num_layers, num_rows, max_length)
        self._options = last_logit_option(model)
        self.num_rows = num_rows
        self.max_length = max_length

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], start: int, slot: int) -> torch.Tensor:
        positions = torch.arange(start, start + len(ids), device=self._model.device).unsqueeze(0)
        width = self._cache.begin_prompt(start, len(ids))
        return self._forward([list(ids)], positions, width, [slot])

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> torch.Tensor:
        places = torch.tensor(positions, device=self._model.device)
        width = self._cache.begin_decode(places, max(positions))
        return self._forward([[token] for token in tokens], places.unsqueeze(-1), width, slots)

    @torch.inference_mode()
    def place(self, rows: list[int], length: int) -> None:
        self._cache.copy_scratch(rows, length)

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        self._cache.move_row(source, target, length)

    def _forward(
        self, ids: list[list[int]], positions: torch.Tensor, width: int, slots: Sequence[int]
    ) -> torch.Tensor:
        device = self._model.device
        self._slots.route(slots, device, self._model.dtype)
        output = self._model(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=causal_mask(self._style, positions, width),
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            **self._options,
        )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


class PlainRunner:
    """Each row by itself, with whatever cache the model makes."""

    def __init__(self, model: Any, slots: AdapterSlots, num_rows: int, max_length: int) -> None:
        self._model = model
        self._slots = slots
        self._options = last_logit_option(model)
        self._rows: dict[int, tuple[list[int], Any]] = {}
        """Tokens so far and the cache that covers them; None when the model makes no cache we can pass on."""
        self._scratch: list[int] = []
        self._scratch_state: Any = None
        self.num_rows = num_rows
        self.max_length = max_length

    @torch.inference_mode()
    def prefill(self, ids: Sequence[int], start: int, slot: int) -> torch.Tensor:
        if start == 0:
            self._scratch, self._scratch_state = [], None
        self._scratch = [*self._scratch, *ids]
        logits, self._scratch_state = self._forward(self._scratch, list(ids), self._scratch_state, slot)
        return logits

    def place(self, rows: list[int], length: int) -> None:
        assert length == len(self._scratch)
        for row in rows:
            self._rows[row] = (list(self._scratch), copy.deepcopy(self._scratch_state))

    @torch.inference_mode()
    def decode(self, tokens: Sequence[int], positions: Sequence[int], slots: Sequence[int]) -> torch.Tensor:
        every = []
        for row, (token, position, slot) in enumerate(zip(tokens, positions, slots, strict=True)):
            known, state = self._rows[row]
            known = [*known[:position], token]
            logits, state = self._forward(known, [token], state, slot)
            self._rows[row] = (known, state)
            every.append(logits)
        return torch.cat(every)

    def move(self, source: int, target: int, length: int) -> None:  # noqa: ARG002
        self._rows[target] = self._rows.pop(source)

    def _forward(self, known: list[int], new: list[int], state: Any, slot: int) -> tuple[torch.Tensor, Any]:
        device = self._model.device
        self._slots.route([slot], device, self._model.dtype)
        # Without a cache to continue, the whole text is read again: slow, and right for every model.
        ids = known if state is None else new
        options = self._options if state is None else {**self._options, "past_key_values": state}
        output = self._model(input_ids=torch.tensor([ids], device=device), use_cache=True, **options)
        return output.logits[:, -1], getattr(output, "past_key_values", None)


def last_logit_option(model: Any) -> dict[str, int]:
    """Ask for the last position's logits only, where the model can."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
