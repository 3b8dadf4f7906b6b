"""Stop when the held-out pairs no longer gain, and keep the adapter under which they fared best.

Looks once an epoch. Held-out loss is what training optimises, on pairs it has not seen: where it rises while
the training loss falls, further epochs only learn the training pairs by heart.
"""

import math
from typing import Any

import torch
from torch import Tensor

from dpo_studio.training.checkpoint import State


class EarlyStop:
    """Watches one PEFT model during one training. Mutates it only in `restore`."""

    def __init__(self, model: Any, patience: int) -> None:
        """patience: epochs without a lower loss before training ends; 0 never ends it and keeps nothing."""
        self._model = model
        self._patience = patience
        self._best: dict[str, Tensor] = {}
        self._best_heldout = torch.empty(0)
        self._num_worse = 0
        self.best_step = 0
        """0: none yet."""
        self.best_loss = math.inf

    @property
    def is_exhausted(self) -> bool:
        """Whether training should end."""
        return 0 < self._patience <= self._num_worse

    def record(self, step: int, loss: float | None, heldout: Tensor) -> None:
        """Take note of an epoch's end.

        loss: on the held-out pairs; None without any. heldout: their log-probabilities behind that loss.
        """
        if not self._patience or loss is None:
            return
        if loss < self.best_loss:
            self.best_step, self.best_loss = step, loss
            self._best = {name: p.detach().clone() for name, p in self._trained()}
            self._best_heldout = heldout.clone()
            self._num_worse = 0
        else:
            self._num_worse += 1

    @torch.no_grad()
    def restore(self) -> Tensor:
        """Put the best adapter back, bit by bit. Returns the held-out log-probabilities under it."""
        for name, parameter in self._trained():
            parameter.copy_(self._best[name])
        return self._best_heldout

    def state_dict(self) -> State:
        """All that `load_state_dict` of another process needs to go on."""
        kept = {f"best/{name}": value for name, value in self._best.items()}
        facts = {"step": self.best_step, "num_worse": self._num_worse}
        # JSON knows no infinity.
        loss = {"loss": self.best_loss} if self._best else {}
        return {**kept, **facts, **loss, "heldout": self._best_heldout}

    def load_state_dict(self, state: State) -> None:
        """Go on from `state_dict`."""
        self.best_step, self._num_worse = state["step"], state["num_worse"]
        self.best_loss = state.get("loss", math.inf)
        self._best_heldout = state["heldout"]
        device = next(self._model.parameters()).device
        self._best = {
            name.removeprefix("best/"): value.to(device)
            for name, value in state.items()
            if name.startswith("best/")
        }

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self._model.named_parameters() if p.requires_grad]
