"""The memory estimate: near what is really taken, and it decides what is trained with or refuses by name."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.dpo.failures import TrainingFailed
from dpo_studio.dpo.layouts import PADDED
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.memory_estimate import (
    MemoryEstimate,
    _cgroup_bytes,
    _saved_per_token,
    estimate_memory,
    fit_budget,
    free_bytes,
)
from dpo_studio.starter import model_dir
from tests.dpo.models import adapter_state, load_tiny, random_pairs, random_rankings, with_lora

# 10 MB fixed, 1 MB for the head, 2 kB a token, 500 B with gradient checkpointing.
ESTIMATE = MemoryEstimate(
    weights=50_000_000,
    optimizer=10_000_000,
    head_per_token=10_000,
    head_tokens=100,
    per_token=2_000,
    per_token_recomputed=500,
)
FIXED = 11_000_000
# The longest takes two padded rows of 100 tokens.
PAIRS = random_pairs([(60, 40, 20), (5, 5, 5)])


def fit(free: int, budget: MemoryBudget | None = None, **changes: Any) -> MemoryBudget:
    budget = budget or MemoryBudget(1000)
    options = {"max_length": 1024, "lora_rank": 16, **changes}
    fit_budget(budget, ESTIMATE, PADDED, PAIRS, free=free, **options)
    return budget


def test_totals_by_hand() -> None:
    assert ESTIMATE.total(50, is_recomputing=False) == 10_000_000 + 50 * 10_000 + 50 * 2_000
    assert ESTIMATE.total(1000, is_recomputing=True) == FIXED + 1000 * 500
    assert ESTIMATE.most_tokens(FIXED + 2_000 * 300, is_recomputing=False) == 300
    packed = dataclasses.replace(ESTIMATE, unpacked=3_000_000)
    assert packed.total(1000, is_recomputing=True) == FIXED + 3_000_000 + 1000 * 500


@pytest.mark.parametrize("is_recomputing", [False, True])
@pytest.mark.parametrize("unpacked", [0, 3_000_000])
@pytest.mark.parametrize("tokens", [1, 99, 100, 101, 5000])
def test_what_fits_takes_what_is_free(tokens: int, unpacked: int, is_recomputing: bool) -> None:
    estimate = dataclasses.replace(ESTIMATE, unpacked=unpacked)
    free = estimate.total(tokens, is_recomputing=is_recomputing)
    assert estimate.most_tokens(free, is_recomputing=is_recomputing) == tokens
    assert estimate.most_tokens(free - 1, is_recomputing=is_recomputing) == tokens - 1


@pytest.mark.parametrize(
    ("tokens_that_fit", "max_tokens", "is_recomputing"),
    [(5000, 1000, False), (1000, 1000, False), (600, 600, False), (250, 250, False), (249, 996, True)],
)
def test_smaller_micro_batches_come_before_gradient_checkpointing(
    tokens_that_fit: int, max_tokens: int, is_recomputing: bool
) -> None:
    """Down to a quarter, as running out of memory would take them."""
    budget = fit(FIXED + 2_000 * tokens_that_fit)
    assert (budget.max_tokens, budget.is_recomputing) == (max_tokens, is_recomputing)


def test_a_longest_pair_that_fits_only_recomputed_is_recomputed() -> None:
    budget = fit(FIXED + 500 * 200, MemoryBudget(400))
    assert (budget.max_tokens, budget.is_recomputing) == (200, True)


def test_a_model_without_checkpointing_keeps_to_what_fits() -> None:
    estimate = MemoryEstimate(0, 0, 0, 0, per_token=10, per_token_recomputed=10)
    budget = MemoryBudget(1000)
    fit_budget(budget, estimate, PADDED, PAIRS, free=2050, max_length=100, lora_rank=16)
    assert (budget.max_tokens, budget.is_recomputing) == (205, False)


def test_a_refusal_says_which_length_would_fit_and_it_does() -> None:
    free = FIXED + 500 * 199
    with pytest.raises(
        TrainingFailed, match=r"longest pair of 200 tokens.* a max_length of 99 would fit"
    ) as e:
        fit(free)
    assert "Training would take about 0.01 GB beside 0.05 GB of weights" in str(e.value)
    short = random_pairs([(60, 39, 20)])
    fit_budget(MemoryBudget(1000), ESTIMATE, PADDED, short, free=free, max_length=99, lora_rank=16)


def test_the_length_that_would_fit_counts_every_response_of_a_ranking() -> None:
    """Four rows of a padded batch: a quarter of the tokens that fit, where a pair may take half."""
    free, options = FIXED + 500 * 199, {"max_length": 100, "lora_rank": 16}
    long = random_rankings([(60, 40, 20, 30, 35)])
    with pytest.raises(TrainingFailed, match=r"longest pair of 400 tokens.* a max_length of 49 would fit"):
        fit_budget(MemoryBudget(1000), ESTIMATE, PADDED, long, free=free, **options)
    short = random_rankings([(20, 29, 20, 25, 15)])
    fit_budget(MemoryBudget(1000), ESTIMATE, PADDED, short, free=free, **options)


def test_the_length_that_would_fit_is_not_divided_by_responses_that_fit() -> None:
    """A ranking of five short responses beside a long pair: its five rows made the offer 39 instead of 99."""
    free, options = FIXED + 500 * 199, {"max_length": 200, "lora_rank": 16}
    small = random_rankings([(5, 9, 3, 4, 8, 2)])
    with pytest.raises(TrainingFailed, match=r"longest pair of 220 tokens.* a max_length of 99 would fit"):
        fit_budget(
            MemoryBudget(1000),
            ESTIMATE,
            PADDED,
            [*small, *random_pairs([(60, 50, 20)])],
            free=free,
            **options,
        )
    cut = random_pairs([(60, 39, 20)])
    fit_budget(MemoryBudget(1000), ESTIMATE, PADDED, [*small, *cut], free=free, **options)


def test_a_refusal_names_a_rank_where_the_optimiser_is_too_much() -> None:
    with pytest.raises(TrainingFailed, match=r"a lora_rank of 7 and short pairs would fit"):
        fit(5_000_000)


def test_a_refusal_may_have_nothing_to_offer() -> None:
    with pytest.raises(TrainingFailed, match="use a smaller model or free memory"):
        fit(1000)


def test_measuring_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = with_lora(load_tiny(tmp_path), is_perturbed=True)
    before = adapter_state(model)
    estimate = estimate_memory(model)
    assert all(torch.equal(before[name], value) for name, value in adapter_state(model).items())
    assert all(p.grad is None for p in model.parameters())
    trained = sum(value.numel() for value in before.values())
    assert estimate.optimizer == 3 * 4 * trained
    assert 0 < estimate.per_token_recomputed < estimate.per_token


def test_what_is_kept_grows_with_the_layers_and_hardly_with_checkpointing(tmp_path: Path) -> None:
    kept = []
    for layers in (2, 6):
        model = with_lora(load_tiny(tmp_path / str(layers), num_hidden_layers=layers))
        kept.append([_saved_per_token(model, is_recomputing=flag) for flag in (False, True)])
    plain, again = ([pair[n] for pair in kept] for n in (0, 1))
    assert plain[1] / plain[0] == pytest.approx(3, rel=0.1)
    # Four layers' inputs of 32 float32 numbers.
    assert again[1] - again[0] == 4 * 32 * 4


@pytest.mark.integration
@pytest.mark.parametrize(
    ("model", "tokens", "is_recomputing"),
    [("starter", 1024, False), ("32k", 1024, False), ("32k", 1024, True)],
)
def test_the_estimate_is_within_a_factor_of_two_of_the_peak(
    model: str, tokens: int, is_recomputing: bool
) -> None:
    name = str(model_dir()) if model == "starter" else model
    command = [sys.executable, "-m", "tests.dpo.peak_memory", name, str(tokens), str(int(is_recomputing))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    assert 0.5 < found["estimate"] / found["took"] < 2, found


def test_this_machine_tells_how_much_is_free() -> None:
    free = free_bytes(torch.device("cpu"))
    assert free is None or 0 < free < 2**50


def test_a_container_leaves_what_it_may_and_what_nobody_reads(tmp_path: Path) -> None:
    for name, text in {
        "memory.max": "1000\n",
        "memory.current": "700\n",
        "memory.stat": "anon 400\ninactive_file 200\nactive_file 100\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert _cgroup_bytes(tmp_path) == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert _cgroup_bytes(tmp_path) is None
    assert _cgroup_bytes(tmp_path / "absent") is None
