"""Gradient checkpointing in eval mode: the same gradients, less kept, and nothing left behind."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.dpo.layouts import LADDER, PREFIX_SHARED, Layout, pair_logps
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.recompute import can_recompute, layers_recomputed
from tests.dpo.models import load_tiny, random_pairs, with_lora

PAIRS = random_pairs([(12, 4, 9), (3, 12, 2)])


def gradients(model: Any, layout: Layout, *, is_recomputing: bool) -> list[torch.Tensor]:
    scorer = ResponseScorer(model)
    scorer.is_recomputing = is_recomputing
    logps = pair_logps(scorer, PAIRS, layout)
    weights = torch.tensor([[1.0, -0.7], [0.45, -0.3]], dtype=torch.float64)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [logps.detach(), *torch.autograd.grad((logps * weights).sum(), parameters)]


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mistral", "gpt2"])
def test_gradients_are_the_same_to_the_bit(tmp_path: Path, architecture: str, layout: Layout) -> None:
    """A layer computed again after the forward must attend over the same segments, or this differs."""
    model = with_lora(load_tiny(tmp_path, architecture), is_perturbed=True)
    plain, again = (gradients(model, layout, is_recomputing=flag) for flag in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_every_layer_is_computed_twice_only_when_asked(tmp_path: Path) -> None:
    model = with_lora(load_tiny(tmp_path))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model.get_base_model().model.layers[0].mlp.register_forward_pre_hook(count)
    gradients(model, PREFIX_SHARED, is_recomputing=False)
    once = calls
    gradients(model, PREFIX_SHARED, is_recomputing=True)
    # The scorer itself looks at the model once before.
    assert (once, calls - once) == (2, 3)


def test_scoring_without_gradients_computes_nothing_twice(tmp_path: Path) -> None:
    model = with_lora(load_tiny(tmp_path))
    scorer = ResponseScorer(model)
    scorer.is_recomputing = True
    with torch.no_grad():
        found = pair_logps(scorer, PAIRS, PREFIX_SHARED)
    assert not found.requires_grad


def test_the_layers_are_what_they_were(tmp_path: Path) -> None:
    model = load_tiny(tmp_path)
    first, second = model.model.layers
    own = first.forward
    first.forward = own
    with layers_recomputed(model):
        assert first.forward is not own
    assert first.__dict__["forward"] is own
    assert "forward" not in second.__dict__


def test_a_model_without_such_layers_is_known(tmp_path: Path) -> None:
    assert can_recompute(with_lora(load_tiny(tmp_path)))
    assert not can_recompute(torch.nn.Linear(2, 2))
