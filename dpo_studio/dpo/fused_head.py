"""A frozen output head and log-softmax in one step, without a (tokens, vocabulary) tensor.

The gradient of a token's log-probability with respect to its hidden state, scale · (W[y] − p·W) before
soft-caps, does not depend on the loss. So it is computed in the forward pass, chunk by chunk, while the
chunk's logits are there: two matrix products per chunk, nothing recomputed, and only (tokens, width) kept.
The backward pass scales its rows. The head's own weights get no gradient: a head that trains is refused.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# 2^23 logits are 32 MiB in float32. Fewer tokens than this at a time leave a product bound by reading W.
_CHUNK_ELEMENTS = 2**23
_MIN_CHUNK_TOKENS = 128


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model does between head and softmax: cap · tanh(scale · z / cap), or scale · z without a cap."""

    scale: float = 1.0
    softcap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """A new tensor, differentiable."""
        if self.softcap is None:
            return logits * self.scale
        return torch.tanh(logits * (self.scale / self.softcap)) * self.softcap


PLAIN = LogitTransform()


def fused_token_logps(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    transform: LogitTransform = PLAIN,
    temperature: float = 1.0,
    chunk_tokens: int | None = None,
) -> Tensor:
    """(tokens,) in float32 or wider: log softmax(transform(hidden·Wᵀ + bias) / temperature)[target].

    hidden: (tokens, width). weight: (vocabulary, width). targets: (tokens,) int64. Raises ValueError when
    the head requires gradients.
    """
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        raise ValueError("expected a frozen head, found one that requires gradients; score it unfused")
    chunk_tokens = chunk_tokens or chunk_tokens_for(weight.shape[0])
    logps: Tensor = _FusedLogps.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, transform, temperature, chunk_tokens
    )
    return logps


def chunk_tokens_for(vocabulary: int) -> int:
    """Tokens whose logits exist at a time."""
    return max(_MIN_CHUNK_TOKENS, _CHUNK_ELEMENTS // vocabulary)


class _FusedLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        temperature: float,
        chunk_tokens: int,
    ) -> Tensor:
        needs_gradient = ctx.needs_input_grad[0]
        logps = torch.empty(len(targets), dtype=_wide(hidden.dtype), device=hidden.device)
        gradient = torch.empty_like(hidden) if needs_gradient else None
        for start in range(0, len(targets), chunk_tokens):
            part = slice(start, start + chunk_tokens)
            logits = _head(hidden[part], weight, bias)
            derivative = _transform(logits, transform, temperature, needs_gradient)
            target = targets[part].unsqueeze(1)
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            logps[part] = (logits.gather(1, target) - normaliser).squeeze(1)
            if gradient is not None:
                # ∂ log p(y) / ∂ z = onehot(y) − p, in the memory of the logits themselves.
                slope = logits.sub_(normaliser).exp_().neg_()
                slope.scatter_add_(1, target, torch.ones_like(slope[:, :1]))
                if derivative is not None:
                    slope.mul_(derivative)
                _scale(slope, transform.scale / temperature)
                gradient[part] = torch.mm(slope.to(weight.dtype), weight)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return logps

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        scaled = (gradient * outer[0].unsqueeze(1)).to(gradient.dtype)
        return (scaled, None, None, None, None, None, None)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 when that is what comes in."""
    return torch.promote_types(dtype, torch.float32)


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(tokens, vocabulary): the raw logits, in float32 or wider."""
    hidden = hidden.to(weight.dtype)
    if weight.device.type == "cuda" and weight.dtype in (torch.bfloat16, torch.float16):
        # Accumulated in float32 anyway; kept so, instead of rounded to 8 bits before the softmax.
        logits = torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    else:
        logits = torch.mm(hidden, weight.t()).to(_wide(weight.dtype))
    return logits if bias is None else logits.add_(bias.to(logits.dtype))


def _transform(
    logits: Tensor, transform: LogitTransform, temperature: float, needs_gradient: bool
) -> Tensor | None:
    """Apply scale, cap and temperature in place. Returns the cap's derivative 1 − tanh², if there is one."""
    if transform.softcap is None:
        _scale(logits, transform.scale / temperature)
        return None
    capped = logits.mul_(transform.scale / transform.softcap).tanh_()
    derivative = 1 - capped.square() if needs_gradient else None
    _scale(logits, transform.softcap / temperature)
    return derivative


def _scale(tensor: Tensor, factor: float) -> None:
    """In place; spares a pass over the chunk when there is nothing to do."""
    if factor != 1.0:
        tensor.mul_(factor)
