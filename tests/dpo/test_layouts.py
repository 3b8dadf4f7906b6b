"""All layouts give the same log-probabilities and gradients, on every architecture we serve."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.dpo.layouts import LADDER, PACKED, PADDED, PREFIX_SHARED, Layout, pair_logps
from dpo_studio.dpo.logps import ResponseScorer
from tests.dpo.models import load_tiny, random_pairs, with_lora
from tests.models import ARCHITECTURES

# The first is longer than the tiny models' sliding windows (8) in every part; one response has one token.
PAIRS = random_pairs([(20, 30, 12), (3, 1, 4), (11, 7, 2), (6, 9, 9)])

SHARED = [min(len(pair.chosen), len(pair.rejected)) for pair in PAIRS]


def gradient(model: Any, logps: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1, 1, logps.numel(), dtype=logps.dtype).view_as(logps)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad((logps * weights).sum(), parameters)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_layouts_agree_with_stock_padded_attention(tmp_path: Path, architecture: str) -> None:
    model = with_lora(load_tiny(tmp_path, architecture), is_perturbed=True)
    scorer = ResponseScorer(model)
    expected = pair_logps(scorer, PAIRS, PADDED)
    slope = gradient(model, expected)
    lengths = torch.tensor([[len(pair.chosen), len(pair.rejected)] for pair in PAIRS])
    for layout in (PACKED, PREFIX_SHARED):
        found = pair_logps(scorer, PAIRS, layout)
        assert ((found - expected).abs() / lengths).max() <= 1e-5, layout.name
        assert (gradient(model, found) - slope).norm() <= 1e-4 * slope.norm(), layout.name


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
def test_neighbours_and_order_change_nothing(tmp_path: Path, layout: Layout) -> None:
    scorer = ResponseScorer(load_tiny(tmp_path))
    with torch.no_grad():
        together = pair_logps(scorer, PAIRS, layout)
        alone = torch.cat([pair_logps(scorer, [pair], layout) for pair in PAIRS])
        reversed_order = pair_logps(scorer, PAIRS[::-1], layout).flip(0)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(together, reversed_order, atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
def test_a_changed_rejected_response_changes_only_its_own_score(tmp_path: Path, layout: Layout) -> None:
    scorer = ResponseScorer(load_tiny(tmp_path))
    pair = PAIRS[2]
    changed = [*PAIRS]
    changed[2] = type(pair)(pair.prompt, pair.chosen, (9, *pair.rejected[1:]))
    with torch.no_grad():
        moved = (pair_logps(scorer, PAIRS, layout) - pair_logps(scorer, changed, layout)).abs() > 1e-4
    assert moved.nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
def test_the_processed_tokens_are_those_announced(layout: Layout) -> None:
    sizes = [layout.size(pair) for pair in PAIRS]
    for group in layout.plan(sizes, 120):
        batch = layout.lay_out([PAIRS[index] for index in group], torch.device("cpu"))
        assert batch.input_ids.numel() == layout.num_tokens([sizes[index] for index in group])


def test_each_rung_processes_fewer_tokens() -> None:
    tokens = [layout.num_tokens([layout.size(pair) for pair in PAIRS]) for layout in LADDER]
    assert tokens == sorted(tokens) and len(set(tokens)) == 3


def test_the_models_attention_is_untouched_after_a_packed_forward(tmp_path: Path) -> None:
    model = load_tiny(tmp_path)
    before = model.config._attn_implementation
    pair_logps(ResponseScorer(model), PAIRS, PREFIX_SHARED)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
def test_a_tail_weight_counts_only_what_the_longer_response_has_more(tmp_path: Path, layout: Layout) -> None:
    scorer = ResponseScorer(load_tiny(tmp_path))
    with torch.no_grad():
        whole, cut, half = (pair_logps(scorer, PAIRS, layout, tail_weight=w) for w in (1.0, 0.0, 0.5))
        shorter = [
            type(p)(p.prompt, p.chosen[:n], p.rejected[:n]) for p, n in zip(PAIRS, SHARED, strict=True)
        ]
        torch.testing.assert_close(cut, pair_logps(scorer, shorter, layout), atol=1e-4, rtol=0)
    torch.testing.assert_close(half, (whole + cut) / 2)
