"""Stop before the policy has left its base.

A round trains on all votes ever given, so its number of steps grows while the useful distance from base
does not: with a fixed learning rate, longer training first helps and then breaks the model. Every few steps
this samples short answers, estimates KL(policy ‖ base) per token, and keeps a copy of the adapter while that
is within a budget; the first time it is not, training ends and the copy is put back. The prompts are best
those that the gate will ask: off the topics of the votes a model drifts first (0.93 nats on the gate's
prompts where prompts of the votes showed 0.35).
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.world import World
from dpo_studio.training.probes import kl_per_token, sample_answers

# The gate asks for at most 0.6, and the estimate from a dozen short answers is good to some 0.05.
BUDGET = 0.4
# On the starter a check takes as long as two steps.
CHECK_EVERY = 15
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
        self._kept_step: int | None = None
        self._kept: list[Tensor] = []
        self.is_exceeded = False

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether to check after this step: regularly, and after the last one."""
        return bool(self._prompts) and (step % self._check_every == 0 or step == num_steps)

    def check(self, step: int) -> float:
        """Measure the drift, the same number in every process, and remember the adapter if it is healthy."""
        drift = self._measure()
        # NaN compares false with everything, and must count as too far.
        self.is_exceeded = not drift <= self._budget
        if not self.is_exceeded:
            self._kept_step = step
            self._kept = [parameter.detach().clone() for parameter in self._trained()]
        return drift

    @torch.no_grad()
    def restore(self) -> int | None:
        """Put the last healthy adapter back and return its step; without one, change nothing."""
        for parameter, kept in zip(self._trained(), self._kept, strict=False):
            parameter.copy_(kept)
        return self._kept_step

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
