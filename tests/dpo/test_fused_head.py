"""The fused head against log-softmax of the whole logits, and against finite differences."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dpo_studio.dpo.fused_head import LogitTransform, fused_token_logps

TRANSFORMS = [LogitTransform(), LogitTransform(scale=0.4), LogitTransform(1.3, softcap=2.0)]


def problem(dtype: torch.dtype = torch.float64, num_tokens: int = 7) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weights, bias, targets for a vocabulary of 11."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, 5, dtype=dtype, generator=generator)
    weight = torch.randn(11, 5, dtype=dtype, generator=generator)
    bias = torch.randn(11, dtype=dtype, generator=generator)
    return hidden, weight, bias, torch.randint(0, 11, (num_tokens,), generator=generator)


def whole(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    t: LogitTransform,
    temperature: float,
) -> Tensor:
    logits = (hidden @ weight.T + (0 if bias is None else bias)) * t.scale
    if t.softcap is not None:
        logits = t.softcap * torch.tanh(logits / t.softcap)
    return (logits / temperature).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradcheck(transform: LogitTransform, with_bias: bool, temperature: float) -> None:
    hidden, weight, bias, targets = problem()

    def score(hidden: Tensor) -> Tensor:
        return fused_token_logps(
            hidden,
            weight,
            targets,
            bias=bias if with_bias else None,
            transform=transform,
            temperature=temperature,
            chunk_tokens=3,
        )

    hidden.requires_grad_()
    assert torch.autograd.gradcheck(score, (hidden,))
    expected = whole(hidden, weight, bias if with_bias else None, targets, transform, temperature)
    torch.testing.assert_close(score(hidden), expected)


def test_a_closed_form() -> None:
    # Logits (0, ln 3): p = (1/4, 3/4), so log p(1) = ln 0.75 and ∂/∂h = W[1] − (1/4·W[0] + 3/4·W[1]).
    hidden = torch.tensor([[1.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]], dtype=torch.float64)
    logps = fused_token_logps(hidden, weight, torch.tensor([1]))
    logps.sum().backward()  # type: ignore[no-untyped-call]
    assert logps.item() == pytest.approx(math.log(0.75), abs=1e-15)
    assert hidden.grad is not None
    assert hidden.grad.item() == pytest.approx(0.25 * math.log(3), abs=1e-15)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7, 100])
def test_chunks_change_nothing(chunk_tokens: int) -> None:
    hidden, weight, _, targets = problem()
    once = fused_token_logps(hidden, weight, targets)
    torch.testing.assert_close(fused_token_logps(hidden, weight, targets, chunk_tokens=chunk_tokens), once)


def test_float32_gradients_are_those_of_autograd() -> None:
    hidden, weight, _, targets = problem(torch.float32, 64)
    hidden.requires_grad_()
    (found,) = torch.autograd.grad(fused_token_logps(hidden, weight, targets).sum(), hidden)
    (expected,) = torch.autograd.grad(whole(hidden, weight, None, targets, TRANSFORMS[0], 1.0).sum(), hidden)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_half_precision_comes_back_in_float32() -> None:
    hidden, weight, _, targets = problem(torch.bfloat16)
    hidden.requires_grad_()
    found = fused_token_logps(hidden, weight, targets)
    expected = whole(hidden.float(), weight.float(), None, targets, TRANSFORMS[0], 1.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.05)
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert hidden.grad is not None and hidden.grad.dtype == torch.bfloat16


def test_without_gradients_nothing_is_kept() -> None:
    hidden, weight, _, targets = problem()
    with torch.no_grad():
        assert fused_token_logps(hidden, weight, targets).grad_fn is None


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the matrix products, and the most rows of any tensor as wide as the vocabulary of 11."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_products = 0
        self.most_rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.num_products += "mm" in str(func)
        if isinstance(result, Tensor) and result.dim() == 2 and result.shape[1] == 11:
            self.most_rows = max(self.most_rows, result.shape[0])
        return result


def test_two_products_a_chunk_and_no_tensor_of_all_logits() -> None:
    hidden, weight, _, targets = problem(torch.float32, 40)
    hidden.requires_grad_()
    with Watch() as watch:
        fused_token_logps(hidden, weight, targets, chunk_tokens=8).sum().backward()  # type: ignore[no-untyped-call]
    assert watch.num_products == 2 * 40 // 8
    assert watch.most_rows == 8


def test_a_head_that_trains_is_refused() -> None:
    hidden, weight, _, targets = problem()
    with pytest.raises(ValueError, match="frozen head"):
        fused_token_logps(hidden, weight.requires_grad_(), targets)
