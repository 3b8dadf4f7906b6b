"""The drift guard: asks regularly, and goes back to the furthest adapter that is still healthy."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.dpo.world import World
from dpo_studio.training.drift import BUDGET, DriftGuard
from tests.dpo.models import adapter_state, load_tiny, random_pairs, with_lora

PROMPTS = [pair.prompt for pair in random_pairs([(5, 3, 3), (4, 3, 3), (6, 3, 3)])]


def guard(model: Any, **changes: Any) -> DriftGuard:
    options: dict[str, Any] = {
        "eos_ids": {3},
        "context_length": 256,
        "seed": 0,
        "world": World(),
        "check_every": 10,
        **changes,
    }
    return DriftGuard(model, PROMPTS, **options)


def perturb(model: Any, std: float) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=std)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return with_lora(load_tiny(tmp_path))


def test_it_asks_regularly_and_after_the_last_step(model: Any) -> None:
    watch = guard(model)
    assert [step for step in range(1, 35) if watch.is_due(step, 34)] == [10, 20, 30, 34]


def test_a_fresh_adapter_has_not_drifted(model: Any) -> None:
    watch = guard(model)
    assert watch.check(10) == 0.0
    assert not watch.is_exceeded


def test_the_furthest_adapter_within_the_budget_comes_back(model: Any) -> None:
    watch = guard(model)
    perturb(model, 0.01)
    near = watch.check(10)
    perturb(model, 1.0)
    assert watch.check(20) > BUDGET
    assert watch.is_exceeded
    step = watch.restore()
    assert step is not None and 10 <= step < 20
    again = watch.check(step)
    assert near <= again <= BUDGET


def test_where_every_step_is_too_far_the_last_healthy_one_comes_back_bit_by_bit(model: Any) -> None:
    drifts = iter([0.1, 9.0, 9.0, 9.0, 9.0])
    watch = guard(model, world=World(rank=1, size=2, sum=lambda tensor: tensor + next(drifts)))
    perturb(model, 0.01)
    healthy = adapter_state(model)
    watch.check(10)
    perturb(model, 1.0)
    watch.check(20)
    assert watch.restore() == 10
    assert all(torch.equal(healthy[name], value) for name, value in adapter_state(model).items())


def test_halving_the_line_finds_the_share_that_fits(model: Any) -> None:
    """Too far beyond 5/8 of the line: tried are 1/2 (fits), 3/4 (not), 5/8 (fits)."""
    drifts = iter([0.1, 9.0, 0.1, 9.0, 0.1])
    watch = guard(model, world=World(rank=1, size=2, sum=lambda tensor: tensor + next(drifts)))
    watch.check(0)
    near = adapter_state(model)
    perturb(model, 1.0)
    far = adapter_state(model)
    watch.check(16)
    assert watch.restore() == 10
    for name, value in adapter_state(model).items():
        torch.testing.assert_close(value, near[name] + 0.625 * (far[name] - near[name]))


def test_without_a_healthy_one_nothing_is_put_back(model: Any) -> None:
    watch = guard(model, world=World(rank=1, size=2, sum=lambda tensor: tensor + 9.0))
    perturb(model, 1.0)
    broken = adapter_state(model)
    watch.check(10)
    assert watch.is_exceeded
    assert watch.restore() is None
    assert all(torch.equal(broken[name], value) for name, value in adapter_state(model).items())


def test_numbers_that_are_none_are_too_far(model: Any) -> None:
    watch = guard(model, world=World(rank=1, size=2, sum=lambda tensor: tensor * torch.nan))
    watch.check(10)
    assert watch.is_exceeded


def test_prompts_without_room_for_an_answer_are_not_asked(model: Any) -> None:
    assert not guard(model, context_length=40).is_due(10, 10)


def test_other_processes_take_the_first_ones_number(model: Any) -> None:
    watch = guard(model, world=World(rank=1, size=2, sum=lambda tensor: tensor + 0.1))
    perturb(model, 1.0)
    assert watch.check(10) == pytest.approx(0.1)
    assert not watch.is_exceeded


def test_another_guard_goes_on_with_what_this_one_remembers(tmp_path: Path) -> None:
    """Too far at step 20, in another process than the one that found step 10 healthy."""
    restored = []
    for is_moved in (False, True):
        model = with_lora(load_tiny(tmp_path / str(is_moved)))
        watch = guard(model)
        torch.manual_seed(0)
        perturb(model, 0.01)
        watch.check(10)
        if is_moved:
            state = {name: copy.deepcopy(value) for name, value in watch.state_dict().items()}
            # As after loading a model anew: what it begins with is not what it should remember.
            perturb(model, 0.3)
            watch = guard(model)
            watch.load_state_dict(state)
        torch.manual_seed(1)
        perturb(model, 1.0)
        watch.check(20)
        assert watch.is_exceeded
        restored.append((watch.restore(), adapter_state(model)))
    assert restored[0][0] == restored[1][0]
    assert all(torch.equal(restored[0][1][name], value) for name, value in restored[1][1].items())
