"""Attention over segments against attention written out, and its refusal of what it does not know."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpo_studio.dpo.batches import Segment, SegmentTable
from dpo_studio.dpo.segment_attention import (
    NAME,
    UnsupportedAttention,
    _attend_varlen,
    _can_use_varlen,
    attend_segments,
    segments_enabled,
)

# Two pairs that share prompts of 5 and 2 tokens, then a text by itself.
SEGMENTS = (
    Segment(0, 5),
    Segment(5, 3, 0, 5),
    Segment(8, 1, 0, 5),
    Segment(9, 2),
    Segment(11, 4, 9, 2),
    Segment(15, 2, 9, 2),
    Segment(17, 6),
)
MODULE: Any = SimpleNamespace(is_causal=True)


def table() -> SegmentTable:
    return SegmentTable(SEGMENTS)


def inputs(heads: int = 4, kv_heads: int = 2, width: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> Tensor:
        return torch.randn(1, count, 23, width, dtype=torch.float64, generator=generator).requires_grad_()

    return draw(heads), draw(kv_heads), draw(kv_heads)


def written_out(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None, softcap: float | None
) -> Tensor:
    """One query at a time, over the list of positions it may see."""
    repeats = query.shape[1] // key.shape[1]
    out = torch.zeros_like(query)
    for segment in SEGMENTS:
        prefix = range(segment.prefix_start, segment.prefix_start + segment.prefix_length)
        for at in range(segment.start, segment.end):
            seen = [*prefix, *range(segment.start, at + 1)]
            seen = seen if window is None else seen[-window:]
            for head in range(query.shape[1]):
                scores = key[0, head // repeats, seen] @ query[0, head, at] * scale
                scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
                out[0, head, at] = scores.softmax(0) @ value[0, head // repeats, seen]
    return out.transpose(1, 2)


@pytest.mark.parametrize("window", [None, 1, 3, 6, 100])
@pytest.mark.parametrize("softcap", [None, 0.7])
def test_values_and_gradients_equal_attention_written_out(window: int | None, softcap: float | None) -> None:
    tensors = inputs()
    found, _ = attend_segments(
        MODULE, *tensors, None, dpo_segments=table(), scaling=0.3, sliding_window=window, softcap=softcap
    )
    with torch.no_grad():
        expected = written_out(*tensors, scale=0.3, window=window, softcap=softcap)
    torch.testing.assert_close(found, expected)
    query, key, value = (tensor.detach().requires_grad_() for tensor in tensors)
    mask = dense_mask(window)
    repeated = key.repeat_interleave(2, 1)
    scores = query @ repeated.transpose(2, 3) * 0.3
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    dense = (scores + mask).softmax(-1) @ value.repeat_interleave(2, 1)
    weights = torch.randn(dense.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        torch.autograd.grad((found.transpose(1, 2) * weights).sum(), tensors),
        torch.autograd.grad((dense * weights).sum(), (query, key, value)),
    )


def dense_mask(window: int | None) -> Tensor:
    mask = torch.full((23, 23), -math.inf, dtype=torch.float64)
    for segment in SEGMENTS:
        prefix = [*range(segment.prefix_start, segment.prefix_start + segment.prefix_length)]
        for at in range(segment.start, segment.end):
            seen = [*prefix, *range(segment.start, at + 1)]
            mask[at, seen if window is None else seen[-window:]] = 0.0
    return mask


@pytest.mark.parametrize("window", [None, 3])
def test_the_variable_length_call_asks_for_the_same(window: int | None) -> None:
    """The kernel runs on CUDA alone; here a stand-in does what its documentation says."""
    query, key, value = inputs()
    found = _attend_varlen(query, key, value, table(), 0.3, window, kernel=documented_varlen)
    expected = written_out(query, key, value, scale=0.3, window=window, softcap=None)
    torch.testing.assert_close(found, expected)


def documented_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts_q: Tensor,
    starts_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    assert starts_q.dtype == starts_k.dtype == torch.int32 and enable_gqa
    assert longest_q == int(starts_q.diff().max()) and longest_k == int(starts_k.diff().max())
    parts = []
    for number in range(len(starts_q) - 1):
        q = query[starts_q[number] : starts_q[number + 1]]
        k, v = (tensor[starts_k[number] : starts_k[number + 1]] for tensor in (key, value))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        # Aligned at the bottom right: the last query stands at the last key.
        behind = (torch.arange(len(q)) + len(k) - len(q))[:, None] - torch.arange(len(k))
        left, right = window_size
        hidden = behind < -right if left < 0 else (behind < -right) | (behind > left)
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        weights = scores.masked_fill(hidden, -math.inf).softmax(-1)
        parts.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(parts)


def test_the_kernel_is_left_alone_where_it_cannot_run() -> None:
    query, _, value = inputs()
    assert not _can_use_varlen(query, value, None)
    assert not _can_use_varlen(query.bfloat16(), value.bfloat16(), None)


@pytest.mark.parametrize("name", ["s_aux", "position_bias", "anything_new"])
def test_an_unknown_argument_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedAttention, match=name):
        attend_segments(MODULE, *inputs(), None, dpo_segments=table(), **{name: torch.zeros(1)})  # type: ignore[arg-type]


def test_an_unknown_argument_that_says_nothing_is_fine() -> None:
    attend_segments(MODULE, *inputs(), None, dpo_segments=table(), s_aux=None, use_cache=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "is_causal"),
        ({"use_cache": True}, "use_cache"),
        ({"dpo_segments": None}, "segments"),
    ],
)
def test_what_would_be_silently_wrong_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedAttention, match=message):
        attend_segments(MODULE, *inputs(), None, **({"dpo_segments": table()} | options))


def test_a_mask_is_refused() -> None:
    with pytest.raises(UnsupportedAttention, match="mask"):
        attend_segments(MODULE, *inputs(), torch.zeros(1), dpo_segments=table())


def test_a_module_that_is_not_causal_is_refused() -> None:
    module: Any = SimpleNamespace(is_causal=False)
    with pytest.raises(UnsupportedAttention, match="not causal"):
        attend_segments(module, *inputs(), None, dpo_segments=table())


def test_the_models_own_attention_is_back_afterwards_even_when_it_fails() -> None:
    model: Any = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    with pytest.raises(RuntimeError), segments_enabled(model):
        assert model.config._attn_implementation == NAME
        raise RuntimeError
    assert model.config._attn_implementation == "sdpa"
