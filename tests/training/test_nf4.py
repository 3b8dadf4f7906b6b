"""Rounds on a 4-bit base: they learn, say how, keep their numbers apart, and are estimated as they are."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.domain.round import RoundReport, TrainSettings
from dpo_studio.dpo.failures import TrainingFailed
from dpo_studio.dpo.layouts import LADDER, PADDED, Layout, pair_logps
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.memory_estimate import MemoryEstimate, _nf4_saves, estimate_memory, fit_budget
from dpo_studio.modeling.adapters import new_lora
from dpo_studio.modeling.base_model import load_base
from dpo_studio.paths import RoundPaths
from dpo_studio.training.attempt import EXIT_FAILED, EXIT_OK
from dpo_studio.training.worker import main
from tests.dpo.models import random_pairs
from tests.models import make_tiny_model
from tests.training.rounds import make_round, read_progress, read_report, rows

pytestmark = pytest.mark.usefixtures("signals")
SETTINGS = TrainSettings(epochs=3, batch_size=4, learning_rate=1e-2, lora_rank=4)
PAIRS = random_pairs([(60, 40, 20), (5, 5, 5)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks of 64 weights."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    return make_tiny_model(tmp_path_factory.mktemp("nf4") / "model", "starter", **shape)


def train(root: Path, model: Path, dtype: str, **options: Any) -> RoundReport:
    paths = make_round(root, model, **{"settings": SETTINGS, "dtype": dtype, **options})
    assert main([str(paths.root)]) == EXIT_OK
    return read_report(paths)


@pytest.mark.integration
def test_a_round_learns_in_the_cheapest_layout(tmp_path: Path, folder: Path) -> None:
    report = train(tmp_path, folder, "nf4", heldout=rows(4, 50))
    losses = [step.metrics["loss"] for step in read_progress(RoundPaths(tmp_path)) if "loss" in step.metrics]
    # Policy and reference are one model at first.
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < 0.5
    assert report.metrics["rewards/margins"] > 0
    assert report.layout == "Trained in the prefix-shared layout."


@pytest.mark.integration
def test_references_of_the_same_files_in_another_precision_are_not_found(
    tmp_path: Path, folder: Path
) -> None:
    options: dict[str, Any] = {
        "reference_cache": str(tmp_path / "cache"),
        "settings": dataclasses.replace(SETTINGS, epochs=1),
    }
    train(tmp_path / "whole", folder, "float32", **options)
    first = train(tmp_path / "first", folder, "nf4", **options)
    again = train(tmp_path / "again", folder, "nf4", **options)
    assert (first.num_reference_known, again.num_reference_known) == (0, 8)
    assert again.adapter_sha256 == first.adapter_sha256


def test_without_bitsandbytes_a_round_fails_with_the_sentence(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    paths = make_round(tmp_path, folder, dtype="nf4")
    assert main([str(paths.root)]) == EXIT_FAILED
    assert "pip install 'dpo-studio[nf4]'" in read_report(paths).reason


def test_the_head_is_fused(folder: Path) -> None:
    adapted = new_lora(load_base(str(folder), device="cpu", dtype="nf4").model, 4, 8, 1)
    scorer = ResponseScorer(adapted)
    scorer.token_logps(PADDED.lay_out(PAIRS, torch.device("cpu")))
    assert scorer._is_head_known


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
def test_layers_computed_again_have_the_same_gradient(folder: Path, layout: Layout) -> None:
    """Gradient checkpointing, as memory wants it most where the weights are in 4 bits."""
    adapted = new_lora(load_base(str(folder), device="cpu", dtype="nf4").model, 4, 8, 1)
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    scorer, found = ResponseScorer(adapted), []
    for scorer.is_recomputing in (False, True):
        logps = pair_logps(scorer, PAIRS, layout)
        found.append(torch.cat([slope.flatten() for slope in torch.autograd.grad(logps.sum(), trained)]))
    assert bool(found[0].any())
    assert torch.equal(*found)


def test_the_estimate_counts_what_lies_in_memory(folder: Path) -> None:
    def estimate(dtype: str) -> MemoryEstimate:
        return estimate_memory(new_lora(load_base(str(folder), device="cpu", dtype=dtype).model, 4, 8, 1))

    whole, four_bit = estimate("float32"), estimate("nf4")
    # Two layers of attention (64 → 64, 32, 32, 64 … all heads of 16) and feed-forward (64 ↔ 128).
    packed = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128)
    assert whole.weights - four_bit.weights == packed * 4 - packed // 2
    assert (whole.unpacked, four_bit.unpacked) == (0, 64 * 128 * 4)
    assert four_bit.optimizer == whole.optimizer
    # Offered on CUDA only.
    assert (whole.nf4_saves, four_bit.nf4_saves) == (0, 0)


def test_what_nf4_would_save_is_what_it_saves(folder: Path) -> None:
    def size(model: Any) -> int:
        total = sum(p.numel() * p.element_size() for p in model.parameters())
        states = [p.quant_state for p in model.parameters() if hasattr(p, "quant_state")]
        return int(total + sum(s.absmax.nbytes + s.state2.absmax.nbytes for s in states))

    whole, four_bit = (load_base(str(folder), device="cpu", dtype=d).model for d in ("float32", "nf4"))
    saved = size(whole) - size(four_bit) - 64 * 128 * 4
    assert _nf4_saves(whole) == pytest.approx(saved, rel=1e-3)
    assert _nf4_saves(new_lora(whole, 4, 8, 1)) == pytest.approx(saved, rel=1e-3)
    assert _nf4_saves(four_bit) == 0


@pytest.mark.parametrize(
    ("free", "said"),
    [
        (60_000, "a max_length of 60 or --dtype nf4 (the model in 4 bits) would fit"),
        (1000, "--dtype nf4 (the model in 4 bits) would fit"),
        (0, "use a smaller model or free memory"),
    ],
)
def test_a_refusal_offers_nf4_where_it_would_fit(free: int, said: str) -> None:
    """The longest pair takes 200 tokens of 500 bytes; 4 bits would give 99 000 back."""
    estimate = MemoryEstimate(0, 0, 0, 0, per_token=500, per_token_recomputed=500, nf4_saves=99_000)
    with pytest.raises(TrainingFailed) as refusal:
        fit_budget(MemoryBudget(), estimate, PADDED, PAIRS, free=free, max_length=100, lora_rank=4)
    assert str(refusal.value).endswith(said)
