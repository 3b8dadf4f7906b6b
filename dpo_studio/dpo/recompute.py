"""Gradient checkpointing for a model in eval mode: layers keep their inputs and are computed again backwards.

transformers' own switch works in training mode only, where dropout is on. So the layers it marks for this are
wrapped for one forward. Gradients are those of the plain forward; it takes about a third longer.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

Context = Callable[[], AbstractContextManager[None]]


def can_recompute(model: nn.Module) -> bool:
    """Whether the model has layers made for it."""
    return any(isinstance(module, GradientCheckpointingLayer) for module in model.modules())


@contextmanager
def layers_recomputed(model: nn.Module, backwards: Context = nullcontext) -> Iterator[None]:
    """Let forwards within the block keep only the layers' inputs.

    backwards: a context that the second computation, long after the block, needs as the first one had it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = _twice(layer.forward, backwards)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


def _twice(forward: Callable[..., Any], backwards: Context) -> Callable[..., Any]:
    def run(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(
            forward,
            *inputs,
            use_reentrant=False,
            # Dropout is off: there is no random state to put back.
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), backwards()),
            **options,
        )

    return run
