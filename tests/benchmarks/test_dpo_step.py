"""The step benchmark counts the FLOPs that are there, whoever asks for them and however."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from benchmarks.dpo_step import counting


def flops(work: Callable[[], object]) -> int:
    found: list[int] = []
    with counting(found):
        work()
    (count,) = found
    return count


def test_products_count_two_for_each_multiplication_and_addition() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert flops(lambda: a @ b) == 2 * 3 * 5 * 7
    assert flops(lambda: torch.addmm(torch.ones(3, 7), a, b)) == 2 * 3 * 5 * 7


def test_a_product_added_in_place_counts() -> None:
    """TRL's head makes its gradient so, and PyTorch's counter misses it: it seemed cheaper than it is."""
    total = torch.zeros(3, 7)
    assert flops(lambda: total.addmm_(torch.ones(3, 5), torch.ones(5, 7))) == 2 * 3 * 5 * 7


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_counts_two_products_and_five_backwards(is_causal: bool) -> None:
    """(batch, heads, seq, width); what a mask hides counts too. Backwards the scores are made once more."""
    q, k, v = (torch.randn(2, 4, seq, 8, requires_grad=True) for seq in (6, 6, 6))
    product = 2 * (2 * 4) * 6 * 6 * 8

    def forward() -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)

    assert flops(forward) == 2 * product
    assert flops(lambda: torch.autograd.grad(forward().sum(), (q, k, v))) == 7 * product
