"""Running out of memory: smaller micro-batches twice, then a sentence."""

import pytest
import torch

from dpo_studio.dpo.failures import TrainingFailed
from dpo_studio.dpo.layouts import Size
from dpo_studio.dpo.memory import MemoryBudget, is_out_of_memory

PAIR = Size(rows=2, tokens=10)
CPU_ERROR = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried"


def test_work_is_done_again_with_half_the_tokens() -> None:
    budget = MemoryBudget(10_000)
    seen: list[list[list[int]]] = []

    def work(groups: list[list[int]]) -> str:
        seen.append(groups)
        if len(groups) < 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    # 4 pairs of 10 tokens, two rows each: 80 tokens, then 40, then 20.
    assert budget.run([PAIR] * 4, work) == "done"
    assert [[len(group) for group in groups] for groups in seen] == [[4], [2, 2], [1, 1, 1, 1]]
    assert (budget.max_tokens, budget.num_halvings) == (20, 2)


def test_a_third_time_is_a_failure() -> None:
    def work(_groups: list[list[int]]) -> None:
        raise RuntimeError(CPU_ERROR)

    with pytest.raises(TrainingFailed, match="Memory ran out with 2 pair"):
        MemoryBudget().run([PAIR] * 8, work)


def test_a_single_pair_cannot_be_split() -> None:
    def work(_groups: list[list[int]]) -> None:
        raise MemoryError

    with pytest.raises(TrainingFailed, match="1 pair"):
        MemoryBudget().run([PAIR], work)


def test_other_errors_are_not_taken_for_it() -> None:
    def work(_groups: list[list[int]]) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        MemoryBudget().run([PAIR], work)


def test_every_way_of_running_out_is_known() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError(CPU_ERROR))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("memory layout not supported"))


def test_a_third_time_turns_to_gradient_checkpointing_and_a_fourth_is_a_failure() -> None:
    budget = MemoryBudget(10_000)
    seen: list[tuple[int, bool]] = []

    def work(groups: list[list[int]]) -> str:
        seen.append((len(groups), budget.is_recomputing))
        if len(seen) < 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert budget.run([PAIR] * 8, work, can_recompute=True) == "done"
    assert seen == [(1, False), (2, False), (4, False), (4, True)]

    def hopeless(_groups: list[list[int]]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(TrainingFailed, match="2 pair"):
        budget.run([PAIR] * 8, hopeless, can_recompute=True)


def test_a_single_pair_is_recomputed_at_once() -> None:
    budget = MemoryBudget(10_000)

    def work(_groups: list[list[int]]) -> bool:
        if not budget.is_recomputing:
            raise MemoryError
        return True

    assert budget.run([PAIR], work, can_recompute=True)
    assert budget.num_halvings == 0


def test_it_says_what_shortness_has_led_to() -> None:
    budget = MemoryBudget(100)
    assert budget.explain() == ""
    budget.num_halvings, budget.max_tokens = 1, 50
    assert budget.explain() == "Memory was short: at most 50 tokens were processed at a time."
    budget.is_recomputing = True
    assert "layers were computed twice" in budget.explain()


def test_a_budget_that_was_cut_is_so_for_whoever_goes_on() -> None:
    cut, other = MemoryBudget(100), MemoryBudget(100)
    cut.max_tokens, cut.num_halvings, cut.is_recomputing = 25, 2, True
    other.load_state_dict(cut.state_dict())
    assert (other.max_tokens, other.num_halvings, other.is_recomputing) == (25, 2, True)
