"""Our steps against TRL's: same weights, adapter, pairs, order and schedule give the same losses."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.trl_trainer import trl_steps
from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.evaluate import score_pairs
from dpo_studio.dpo.layouts import PREFIX_SHARED
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.trainer import Trainer
from dpo_studio.modeling.adapters import new_lora
from tests.dpo.models import adapter_state, load_tiny, random_pairs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed"),
]
PAIRS = random_pairs(
    [(5, 4, 9), (3, 12, 2), (8, 6, 6), (4, 1, 7), (6, 3, 5), (2, 8, 8), (9, 5, 4), (7, 2, 2)]
)

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({}, {"loss_type": ["sigmoid"]}),
    "ipo": ({"loss": "ipo", "length_normalised": True}, {"loss_type": ["ipo"]}),
    "hinge": ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
    "robust": ({"loss": "robust", "label_smoothing": 0.1}, {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "sigmoid_norm": ({"length_normalised": True}, {"loss_type": ["sigmoid_norm"]}),
    "ld_alpha": ({"ld_alpha": 0.4}, {"loss_type": ["sigmoid"], "ld_alpha": 0.4}),
}


def settings_for(changes: dict[str, Any], **more: Any) -> TrainSettings:
    return TrainSettings(
        **{
            "epochs": 3,
            "batch_size": 4,
            "learning_rate": 5e-3,
            "lora_rank": 4,
            "lora_alpha": 8,
            **changes,
            **more,
        }
    )


def ours(folder: Path, pairs: Any, settings: TrainSettings) -> tuple[list[float], list[float], Any]:
    model = new_lora(load_tiny(folder), settings.lora_rank, settings.lora_alpha, 0)
    initial = adapter_state(model)
    scorer = ResponseScorer(model)
    with model.disable_adapter():
        reference = score_pairs(
            scorer, pairs, MemoryBudget(), layout=PREFIX_SHARED, tail_weight=settings.ld_alpha
        )
    steps = list(Trainer(scorer, pairs, reference, settings, layout=PREFIX_SHARED).steps())
    return [s.metrics["loss"] for s in steps], [s.metrics["grad_norm"] for s in steps], initial


def theirs(folder: Path, pairs: Any, settings: TrainSettings, initial: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trl_steps(
            load_tiny(folder),
            pairs,
            settings,
            initial,
            folder / "trl",
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            **options,
        )


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradient_norms_are_those_of_trl(tmp_path: Path, name: str) -> None:
    changes, options = CASES[name]
    settings = settings_for(changes)
    losses, norms, initial = ours(tmp_path / "ours", PAIRS, settings)
    steps = theirs(tmp_path / "theirs", PAIRS, settings, initial, **options)
    assert losses == pytest.approx([step.loss for step in steps], abs=1e-4)
    assert norms == pytest.approx([step.grad_norm for step in steps], rel=1e-3)
    assert max(losses) - min(losses) > 1e-3, "the loss must move, or this test shows nothing"


def test_the_sft_term_is_that_of_trl_where_responses_are_equally_long(tmp_path: Path) -> None:
    """Ours is the mean over pairs of the mean over tokens, TRL's the mean over the batch's tokens."""
    pairs = random_pairs(
        [(p, 6, r) for p, r in [(5, 9), (3, 2), (8, 6), (4, 7), (6, 5), (2, 8), (9, 4), (7, 2)]]
    )
    settings = settings_for({"sft_weight": 0.3})
    losses, norms, initial = ours(tmp_path / "ours", pairs, settings)
    options = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}
    steps = theirs(tmp_path / "theirs", pairs, settings, initial, **options)
    assert losses == pytest.approx([step.loss for step in steps], abs=1e-4)
    assert norms == pytest.approx([step.grad_norm for step in steps], rel=1e-3)


def test_a_live_reference_and_checkpointing_are_the_same_numbers(tmp_path: Path) -> None:
    """TRL's defaults, against our cached reference."""
    settings = settings_for({}, epochs=2)
    losses, _, initial = ours(tmp_path / "ours", PAIRS, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = trl_steps(load_tiny(tmp_path / "m"), PAIRS, settings, initial, tmp_path / "trl")
    assert losses == pytest.approx([step.loss for step in steps], abs=1e-4)
    assert torch.tensor(losses).isfinite().all()
