"""From a loaded base model to a runner: how many rows fit, and whether this model can be batched.

Nothing is believed of an unknown architecture: its cache is looked at, and a short conversation is run
through the slot cache and compared with the model's own answer before the batched runner is used.
"""

from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from dpo_studio.modeling.base_model import BaseModel
from dpo_studio.serving.adapter_slots import AdapterSlots
from dpo_studio.serving.masks import mask_style
from dpo_studio.serving.runner import PlainRunner, Runner, SlotRunner, last_logit_option

_CPU_CACHE_SHARE = 0.25
_CUDA_CACHE_SHARE = 0.6
_LEAST_LENGTH = 512
_LEAST_ROWS = 2
_CHECK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class BuiltRunner:
    """A runner and, when it is the slow one, why."""

    runner: Runner
    note: str


def build_runner(base: BaseModel, slots: AdapterSlots, *, max_rows: int, max_context: int) -> BuiltRunner:
    """The fastest runner that is right for this model."""
    length = min(base.context_length, max_context)
    probe = _probe_cache(base)
    style = mask_style(base.model.config, base.dtype)
    if probe is None or style is None:
        note = "This model's attention cannot be batched; answers are made one after another."
        return _plain(base, slots, length, note)
    num_layers, token_bytes = probe
    rows, length = fit_rows(token_bytes, _cache_budget(base.device), max_rows=max_rows, max_length=length)
    runner = SlotRunner(base.model, slots, style, num_layers=num_layers, num_rows=rows, max_length=length)
    if not _agrees(base, runner):
        note = "This model answers differently when batched; answers are made one after another."
        return _plain(base, slots, length, note)
    return BuiltRunner(runner, "")


def _plain(base: BaseModel, slots: AdapterSlots, length: int, note: str) -> BuiltRunner:
    """The runner that is right for every model, and slow."""
    return BuiltRunner(PlainRunner(base.model, slots, 2 * _LEAST_ROWS, length), note)


def fit_rows(token_bytes: int, budget: int, *, max_rows: int, max_length: int) -> tuple[int, int]:
    """(rows, length) whose cache fits into `budget` bytes: first fewer rows, then shorter ones."""
    rows = min(max_rows, budget // (token_bytes * max_length))
    if rows >= min(max_rows, 2 * _LEAST_ROWS):
        return rows, max_length
    rows = min(max_rows, 2 * _LEAST_ROWS)
    affordable = budget // (token_bytes * rows)
    return rows, min(max_length, max(affordable, _LEAST_LENGTH))


def _cache_budget(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _CUDA_CACHE_SHARE)
    return int(psutil.virtual_memory().available * _CPU_CACHE_SHARE)


@torch.inference_mode()
def _probe_cache(base: BaseModel) -> tuple[int, int] | None:
    """(layers, bytes per token and row) of the model's own cache; None unless it is plain keys and values."""
    ids = torch.zeros(1, 2, dtype=torch.long, device=base.device)
    cache: Any = getattr(base.model(input_ids=ids, use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", None)
    if not layers or any(type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
        return None
    if any(not layer.is_initialized for layer in layers):
        return None
    elements = sum(x.shape[1] * x.shape[3] for layer in layers for x in (layer.keys, layer.values))
    return len(layers), elements * layers[0].keys.element_size()


@torch.inference_mode()
def _agrees(base: BaseModel, runner: SlotRunner) -> bool:
    """Whether chunked, batched decoding gives the logits of one plain pass."""
    size = base.model.get_input_embeddings().num_embeddings
    ids = [(7 * position + 3) % size for position in range(min(_CHECK_TOKENS, runner.max_length))]
    expected = base.model(
        input_ids=torch.tensor([ids], device=base.device), use_cache=False, **last_logit_option(base.model)
    ).logits[0, -1]
    try:
        runner.prefill(ids[:5], 0, -1)
        runner.prefill(ids[5:10], 5, -1)
        rows = list(range(min(2, runner.num_rows)))
        runner.place(rows, 10)
        for position in range(10, len(ids)):
            found = runner.decode([ids[position]] * len(rows), [position] * len(rows), [-1] * len(rows))
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError):
        return False
    alike = torch.nn.functional.cosine_similarity(found.float(), expected.float().unsqueeze(0), dim=-1)
    return bool((alike > (0.9999 if base.dtype == torch.float32 else 0.99)).all())
