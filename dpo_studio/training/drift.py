"""Stop before the policy has left its base.

A round trains on all votes ever given, so its number of steps grows while the useful distance from base
does not: with a fixed learning rate, longer training first helps and then breaks the model. Every few steps
this samples short answers, estimates KL(policy ‖ base) per token, and keeps a copy of the adapter while that
is within a budget; the first time it is not, training ends, and the furthest adapter within the budget is
looked for on the line between that copy and the one that went too far. The prompts are best those that the
gate will ask: off the topics of the votes a model drifts first (0.93 nats on the gate's prompts where
prompts of the votes showed 0.35).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.world import World
from dpo_studio.training.probes import kl_per_token, sample_answers

# The gate asks for at most 0.6, and the estimate from a dozen short answers is good to a factor of two. On
# the starter, rounds below 0.15 kept their content and rounds above 0.2 lost some (docs/lab-log.md).
BUDGET = 0.2
# On the starter a check takes as long as two steps.
CHECK_EVERY = 15
# Halvings of the line: an eighth of the way between two checks is about two steps.
_HALVINGS = 3
_NUM_PROMPTS = 12
_MAX_TOKENS = 48


class DriftGuard:
    """Watches one PEFT model during one training. Mutates it only in `restore`."""

    def __init__(
        self,
        model: Any,
        prompts: Sequence[tuple[int, ...]],
        *,
        eos_ids: Collection[int],
        context_length: int,
        seed: int,
        world: World,
        budget: float = BUDGET,
        check_every: int = CHECK_EVERY,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """`prompts` in order of preference; those without room for an answer are passed over."""
        self._model = model
        self._eos_ids = eos_ids
        self._seed = seed
        self._world = world
        self._budget = budget
        self._check_every = check_every
        self._should_stop = should_stop
        fitting = [prompt for prompt in prompts if len(prompt) + _MAX_TOKENS <= context_length]
        self._prompts = list(dict.fromkeys(fitting))[:_NUM_PROMPTS]
        self._is_kept_healthy = False
        self.kept_step = 0
        """The last one found healthy; 0 before any check."""
        self._kept = self._copy()
        self._last_step = 0
        self.is_exceeded = False

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether to check after this step: regularly, and after the last one."""
        return bool(self._prompts) and (step % self._check_every == 0 or step == num_steps)

    def check(self, step: int) -> float:
        """Measure the drift, the same number in every process, and remember the adapter if it is healthy."""
        drift = self._measure()
        # NaN compares false with everything, and must count as too far.
        self.is_exceeded = not drift <= self._budget
        self._last_step = step
        if not self.is_exceeded:
            self._is_kept_healthy, self.kept_step, self._kept = True, step, self._copy()
        return drift

    def restore(self) -> int | None:
        """Put the furthest healthy adapter back and return the step it stands for.

        Looked for between the last healthy one (or where training began) and the present one. Where not even
        the near end is healthy, nothing is changed and None returned.
        """
        near, far = self._kept, self._copy()
        low, high = 0.0, 1.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            self._place(near, far, middle)
            if self._measure() <= self._budget:
                low = middle
            else:
                high = middle
        is_found = self._is_kept_healthy or low > 0
        self._place(near, far, low if is_found else 1.0)
        return self.kept_step + round(low * (self._last_step - self.kept_step)) if is_found else None

    def state_dict(self) -> dict[str, Any]:
        """What it remembers, by name: tensors and JSON values."""
        kept = {f"kept/{number}": tensor for number, tensor in enumerate(self._kept)}
        return {
            **kept,
            "is_kept_healthy": self._is_kept_healthy,
            "kept_step": self.kept_step,
            "last_step": self._last_step,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remember what another process's guard did, which must not have found the budget exceeded."""
        self._is_kept_healthy, self.kept_step = state["is_kept_healthy"], state["kept_step"]
        self._last_step = state["last_step"]
        for number, tensor in enumerate(self._kept):
            tensor.copy_(state[f"kept/{number}"])

    @torch.no_grad()
    def _place(self, near: Sequence[Tensor], far: Sequence[Tensor], share: float) -> None:
        for parameter, start, end in zip(self._trained(), near, far, strict=True):
            # Not lerp_: its ends are not exact, and the healthy end must come back bit by bit.
            parameter.copy_(start if share == 0 else end if share == 1 else torch.lerp(start, end, share))

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._trained()]

    def _trained(self) -> list[Tensor]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def _measure(self) -> float:
        device = next(self._model.parameters()).device
        drift = torch.zeros((), dtype=torch.float64, device=device)
        if self._world.rank == 0:
            answers = sample_answers(
                self._model.eval(),
                self._prompts,
                eos_ids=self._eos_ids,
                seed=self._seed,
                samples_per_prompt=1,
                max_tokens=_MAX_TOKENS,
                should_stop=self._should_stop,
            )
            # No answers: training is being cancelled, and will notice.
            if answers:
                drift += kl_per_token(ResponseScorer(self._model), answers, self._model.disable_adapter)
        return float(self._world.sum(drift))
