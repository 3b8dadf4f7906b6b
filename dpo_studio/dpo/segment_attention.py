"""Exact attention over a row of segments, as an attention implementation of transformers.

Every segment attends causally to itself after all of its prefix; there is no mask over the whole row. On
CUDA in half precision one variable-length kernel call serves a layer; elsewhere, and where the model caps
its scores, each segment is computed by itself. Sliding windows and soft-caps of the architecture arrive as
keyword arguments and are honoured. Refuses whatever it does not know: attention that silently ignored an
argument (sinks, position biases) would give wrong log-probabilities without an error.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from dpo_studio.dpo.batches import Segment, SegmentTable

NAME = "dpo_segments"
# Model-level arguments that reach every attention function and do not change what attention computes here:
# positions were applied to queries and keys before, and nothing is cached or returned.
_HARMLESS = frozenset({"position_ids", "cache_position", "use_cache", "is_causal", "return_dict"})
_ALLOWED_VALUES: Mapping[str, tuple[Any, ...]] = {"is_causal": (True,), "use_cache": (False,)}


class UnsupportedAttention(Exception):
    """The model asks for something that attention over segments does not do. Says what."""


@contextmanager
def segments_enabled(model: nn.Module) -> Iterator[None]:
    """Let `model` attend over segments within the block; its own implementation is back afterwards."""
    # A name without a mask function gets no mask, and the model's keyword arguments: just what is needed.
    AttentionInterface.register(NAME, attend_segments)
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = NAME
    try:
        yield
    finally:
        config._attn_implementation = before


def attend_segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dpo_segments: SegmentTable | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **unknown: Any,
) -> tuple[Tensor, None]:
    """query: (1, heads, seq, width); key, value: (1, kv heads, seq, width). Returns (1, seq, heads, width).

    Raises UnsupportedAttention for an argument it does not know.
    """
    _refuse_unknown(module, attention_mask, dropout, unknown)
    if dpo_segments is None or query.shape[0] != 1 or query.shape[2] != dpo_segments.num_tokens:
        raise UnsupportedAttention("attention over segments expects one whole row and its segments")
    if _can_use_varlen(query, value, softcap):
        return _attend_varlen(query, key, value, dpo_segments, scaling, sliding_window), None
    # One copy for all segments is cheaper than letting every call expand the heads again.
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    parts = []
    for segment in dpo_segments.segments:
        q = query[:, :, segment.start : segment.end]
        k, v = _visible(key, segment), _visible(value, segment)
        if softcap is not None:
            mask = _mask(dpo_segments, segment, sliding_window, q)
            parts.append(_attend_capped(q, k, v, mask, scaling, softcap))
        elif not segment.prefix_length and (sliding_window is None or segment.length <= sliding_window):
            parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling))
        else:
            mask = _mask(dpo_segments, segment, sliding_window, q)
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _refuse_unknown(
    module: nn.Module, attention_mask: Tensor | None, dropout: float, unknown: Mapping[str, Any]
) -> None:
    if attention_mask is not None:
        raise UnsupportedAttention("the model made an attention mask of its own")
    if dropout:
        raise UnsupportedAttention(f"attention dropout of {dropout} is on")
    if not getattr(module, "is_causal", True):
        raise UnsupportedAttention(f"{type(module).__name__} is not causal")
    for name, found in unknown.items():
        if found is None or (name in _HARMLESS and found in _ALLOWED_VALUES.get(name, (found,))):
            continue
        if name.startswith("output_") and found is False:
            continue
        raise UnsupportedAttention(f"{type(module).__name__} passes {name}, which is not known here")


def _visible(tensor: Tensor, segment: Segment) -> Tensor:
    """Prefix and segment along the sequence. tensor: (1, heads, seq, width)."""
    own = tensor[:, :, segment.start : segment.end]
    if not segment.prefix_length:
        return own
    prefix = tensor[:, :, segment.prefix_start : segment.prefix_start + segment.prefix_length]
    return torch.cat((prefix, own), dim=2)


def _mask(table: SegmentTable, segment: Segment, window: int | None, like: Tensor) -> Tensor:
    """(length, prefix + length): 0 where a token may look, −inf elsewhere; aligned at the last token."""
    found = (segment.length, segment.prefix_length, window, like.dtype)
    if found not in table.derived:
        last = torch.arange(segment.length, device=like.device).unsqueeze(1) + segment.prefix_length
        at = torch.arange(segment.prefix_length + segment.length, device=like.device)
        hidden = at > last
        if window is not None:
            # As transformers counts: a token sees itself and the window − 1 before it.
            hidden |= at <= last - window
        mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        table.derived[found] = mask.masked_fill_(hidden, float("-inf"))
    mask_found: Tensor = table.derived[found]
    return mask_found


def _attend_capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, softcap: float
) -> Tensor:
    """softmax(softcap · tanh(scores / softcap) + mask) · value, as Gemma 2 defines it."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query, key.transpose(2, 3)) * scale
    scores = torch.tanh(scores / softcap) * softcap + mask
    weights = F.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return torch.matmul(weights.to(query.dtype), value)


def _can_use_varlen(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether PyTorch's variable-length kernel takes these: CUDA, half precision, Ampere or later."""
    if query.device.type != "cuda" or softcap is not None or query.shape[-1] != value.shape[-1]:
        return False
    if query.dtype not in (torch.bfloat16, torch.float16) or query.shape[-1] > 256 or query.shape[-1] % 8:
        return False
    if torch.version.hip is not None or torch.cuda.get_device_capability(query.device) < (8, 0):
        return False
    return _varlen_kernel() is not None


def _varlen_kernel() -> Any:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


def _attend_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    table: SegmentTable,
    scaling: float | None,
    window: int | None,
    kernel: Any = None,
) -> Tensor:
    """One kernel call: queries as they stand, keys and values gathered so that prefixes repeat."""
    index, starts_q, starts_k, longest_q, longest_k = _varlen_table(table, query.device)
    attended: Tensor = (kernel or _varlen_kernel())(
        query[0].transpose(0, 1).contiguous(),
        key[0].transpose(0, 1).index_select(0, index),
        value[0].transpose(0, 1).index_select(0, index),
        starts_q,
        starts_k,
        longest_q,
        longest_k,
        scale=scaling,
        # (tokens to the left, to the right), the token itself not counted; aligned at the last token.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended.unsqueeze(0)


def _varlen_table(table: SegmentTable, device: torch.device) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Positions of the keys by segment, where each segment's queries and keys start, and the longest."""
    if "varlen" not in table.derived:
        index: list[int] = []
        starts_q, starts_k = [0], [0]
        for segment in table.segments:
            index.extend(range(segment.prefix_start, segment.prefix_start + segment.prefix_length))
            index.extend(range(segment.start, segment.end))
            starts_q.append(segment.end)
            starts_k.append(len(index))
        table.derived["varlen"] = (
            torch.tensor(index, device=device),
            torch.tensor(starts_q, dtype=torch.int32, device=device),
            torch.tensor(starts_k, dtype=torch.int32, device=device),
            max(segment.length for segment in table.segments),
            max(segment.prefix_length + segment.length for segment in table.segments),
        )
    found: tuple[Tensor, Tensor, Tensor, int, int] = table.derived["varlen"]
    return found
