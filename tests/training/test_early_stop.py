"""Early stop: the epoch with the lowest held-out loss is the one that stays."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.training.early_stop import EarlyStop
from tests.dpo.models import adapter_state, load_tiny, with_lora


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return with_lora(load_tiny(tmp_path))


def move(model: Any, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by)


def run(model: Any, losses: list[float], patience: int, first_step: int = 10) -> tuple[EarlyStop, list[Any]]:
    """Epochs of 10 steps, each moving the adapter; returns the adapters after each."""
    early, adapters = EarlyStop(model, patience), []
    for number, loss in enumerate(losses):
        move(model, 0.1)
        adapters.append(adapter_state(model))
        early.record(first_step + 10 * number, loss, torch.full((2, 2), loss))
    return early, adapters


def is_at(model: Any, adapter: Any) -> bool:
    return all(torch.equal(adapter[name], value) for name, value in adapter_state(model).items())


@pytest.mark.parametrize(
    ("losses", "patience", "is_exhausted", "best_step"),
    [
        ([0.6, 0.5, 0.4], 1, False, 30),
        ([0.6, 0.7], 1, True, 10),
        ([0.6, 0.7], 2, False, 10),
        ([0.6, 0.7, 0.8], 2, True, 10),
        # A new best starts the count again.
        ([0.6, 0.7, 0.5, 0.7], 2, False, 30),
        # As low as before is not lower.
        ([0.6, 0.6], 1, True, 10),
    ],
)
def test_patience_counts_epochs_since_the_best(
    model: Any, losses: list[float], patience: int, is_exhausted: bool, best_step: int
) -> None:
    early, _ = run(model, losses, patience)
    assert (early.is_exhausted, early.best_step, early.best_loss) == (is_exhausted, best_step, min(losses))


def test_the_best_adapter_comes_back_bit_by_bit_with_its_scores(model: Any) -> None:
    early, adapters = run(model, [0.6, 0.4, 0.5, 0.7], 2)
    assert is_at(model, adapters[3])
    assert torch.equal(early.restore(), torch.full((2, 2), 0.4))
    assert is_at(model, adapters[1])


def test_without_patience_nothing_is_kept(model: Any) -> None:
    early, _ = run(model, [0.6, 0.7, 0.8], 0)
    assert (early.is_exhausted, early.best_step) == (False, 0)
    assert set(early.state_dict()) == {"step", "num_worse", "heldout"}


def test_without_held_out_pairs_it_never_ends_training(model: Any) -> None:
    early = EarlyStop(model, 1)
    for step in (10, 20, 30):
        early.record(step, None, torch.empty(0, 2))
    assert (early.is_exhausted, early.best_step) == (False, 0)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_another_process_goes_on_with_what_this_one_remembers(model: Any, taken: int) -> None:
    losses = [0.4, 0.6, 0.7]
    early, adapters = run(model, losses[:taken], 2)
    state = copy.deepcopy(early.state_dict())
    later = EarlyStop(model, 2)
    later.load_state_dict(state)
    for number, loss in enumerate(losses[taken:], start=taken):
        move(model, 0.1)
        adapters.append(adapter_state(model))
        later.record(10 * (number + 1), loss, torch.full((2, 2), loss))
    assert (later.is_exhausted, later.best_step, later.best_loss) == (True, 10, 0.4)
    later.restore()
    assert is_at(model, adapters[0])
