"""The training loop: pairs and their reference log-probabilities in, a trained adapter out.

Trains whatever parameters of the model require gradients, by AdamW, with linear warmup and cosine decay.
Always holds: a step's gradient is that of the mean loss over its pairs, however it was split into
micro-batches and processes, and for the last, shorter batch of an epoch too; on a CPU the same seed and
thread count give the same bits, also when another process went half the way (`state_dict`). Writes nothing
and prints nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.batches import TokenPair, response_lengths
from dpo_studio.dpo.evaluate import chosen_probabilities
from dpo_studio.dpo.failures import TrainingCancelled, TrainingFailed
from dpo_studio.dpo.layouts import PADDED, Layout, pair_logps
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.losses import preference_losses, sft_losses
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.metrics import SUM_NAMES, metrics_of, preference_sums
from dpo_studio.dpo.recompute import can_recompute
from dpo_studio.dpo.world import World


@dataclass(frozen=True, slots=True)
class StepResult:
    """One optimiser step, after it was taken."""

    step: int
    """From 1."""
    is_epoch_end: bool
    metrics: dict[str, float]


class Trainer:
    """Trains the adapter inside `scorer.model` in place. Use once."""

    def __init__(
        self,
        scorer: ResponseScorer,
        pairs: Sequence[TokenPair],
        reference: Tensor,
        settings: TrainSettings,
        *,
        layout: Layout = PADDED,
        budget: MemoryBudget | None = None,
        world: World | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """reference: summed log-probabilities of the reference on `pairs`, as `score_pairs` gives them.

        They must come from `layout`, with the settings' `ld_alpha` as their tail weight.
        """
        if not pairs:
            raise TrainingFailed("Training needs at least one pair, and there is none; label some more")
        self._scorer = scorer
        self._pairs = pairs
        self._settings = settings
        self._layout = layout
        self._budget = budget or MemoryBudget()
        self._world = world or World()
        self._should_stop = should_stop
        self._trained = {name: p for name, p in scorer.model.named_parameters() if p.requires_grad}
        self._parameters = list(self._trained.values())
        self._device = self._parameters[0].device
        self._reference = reference.to(self._device)
        self._lengths = response_lengths(pairs).to(self._device)
        probabilities = chosen_probabilities(pairs)
        self._probabilities = None if probabilities is None else probabilities.to(self._device)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=settings.learning_rate, weight_decay=0.0)
        self._num_done = 0

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole training."""
        return self._settings.epochs * math.ceil(len(self._pairs) / self._settings.batch_size)

    def steps(self) -> Iterator[StepResult]:
        """Train, yielding after every optimiser step.

        Raises TrainingFailed when the loss stops being a finite number or memory runs out, and
        TrainingCancelled within one step of being asked to stop.
        """
        step = 0
        for batches in epoch_batches(len(self._pairs), self._settings):
            for number, batch in enumerate(batches):
                step += 1
                if step <= self._num_done:
                    continue
                if self._world.agree(self._should_stop(), self._device):
                    raise TrainingCancelled
                metrics = self._step(step - 1, batch)
                self._num_done = step
                yield StepResult(step, number == len(batches) - 1, metrics)

    def state_dict(self) -> dict[str, Any]:
        """All that going on from here needs, by name: steps taken, what trains, and the optimiser's moments.

        Data order and schedule follow from the settings and the steps taken. Valid between two steps, and
        until the next: the tensors are the living ones.
        """
        state: dict[str, Any] = {"num_done": self._num_done}
        for name, parameter in self._trained.items():
            state[f"parameter/{name}"] = parameter
            for kind, value in self._optimizer.state[parameter].items():
                state[f"{kind}/{name}"] = value
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where another trainer of the same pairs and settings stood. Call before `steps`."""
        self._num_done = state["num_done"]
        optimizer_state = self._optimizer.state_dict()
        for index, (name, parameter) in enumerate(self._trained.items()):
            parameter.copy_(state[f"parameter/{name}"])
            kinds = ("step", "exp_avg", "exp_avg_sq") if self._num_done else ()
            optimizer_state["state"][index] = {kind: state[f"{kind}/{name}"] for kind in kinds}
        self._optimizer.load_state_dict(optimizer_state)

    def _step(self, step: int, batch: list[int]) -> dict[str, float]:
        learning_rate = learning_rate_at(step, self.num_steps, self._settings)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        share = list(self._world.share(batch))
        sums = self._budget.run(
            [self._layout.size(self._pairs[index]) for index in share],
            lambda groups: self._accumulate([[share[i] for i in group] for group in groups], len(batch)),
            layout=self._layout,
            can_recompute=can_recompute(self._scorer.model),
        )
        grad_norm = self._synchronise_and_clip()
        names = list(sums)
        totals: list[float] = self._world.sum(torch.stack([sums[name] for name in names])).tolist()
        metrics = metrics_of(dict(zip(names, totals, strict=True)), len(batch))
        if not math.isfinite(metrics["loss"]) or not math.isfinite(grad_norm):
            raise TrainingFailed(
                f"The loss stopped being a finite number at step {step + 1} of {self.num_steps}"
                f" (loss {metrics['loss']}, gradient norm {grad_norm});"
                f" use a learning rate below {self._settings.learning_rate}"
            )
        self._optimizer.step()
        return {**metrics, "grad_norm": grad_norm, "learning_rate": learning_rate}

    def _accumulate(self, groups: list[list[int]], num_pairs: int) -> dict[str, Tensor]:
        """Gradients of this share of the step's mean loss, and the sums behind its metrics."""
        self._optimizer.zero_grad()
        self._scorer.is_recomputing = self._budget.is_recomputing
        sums = dict.fromkeys(
            ("loss", *SUM_NAMES), torch.zeros((), dtype=self._reference.dtype, device=self._device)
        )
        for group in groups:
            policy = pair_logps(
                self._scorer,
                [self._pairs[index] for index in group],
                self._layout,
                tail_weight=self._settings.ld_alpha,
            )
            # The widest ranking of the group may be narrower than that of all pairs.
            columns = slice(policy.shape[1])
            reference, lengths = self._reference[group, columns], self._lengths[group, columns]
            probabilities = None if self._probabilities is None else self._probabilities[group]
            losses = preference_losses(policy - reference, self._settings, lengths, probabilities)
            if self._settings.sft_weight:
                losses = losses + self._settings.sft_weight * sft_losses(policy[:, 0], lengths[:, 0])
            (losses.sum() / num_pairs).backward()  # type: ignore[no-untyped-call]
            policy = policy.detach()
            parts = preference_sums(policy, reference, lengths, beta=self._settings.beta)
            parts["loss"] = losses.detach().sum()
            sums = {name: total + parts[name] for name, total in sums.items()}
        return sums

    def _synchronise_and_clip(self) -> float:
        """Sum gradients over processes, clip them by their common norm, and return the norm before."""
        for parameter in self._parameters:
            # A process without a share still takes part in the sum.
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if self._world.size > 1:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            flat = self._world.sum(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, part in zip(
                gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True
            ):
                gradient.copy_(part.view_as(gradient))
        return float(torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.max_grad_norm))


def epoch_batches(num_pairs: int, settings: TrainSettings) -> Iterator[list[list[int]]]:
    """For every epoch its batches of pair indices: a fresh shuffle, the last batch possibly shorter."""
    generator = torch.Generator().manual_seed(settings.seed)
    for _ in range(settings.epochs):
        order: list[int] = torch.randperm(num_pairs, generator=generator).tolist()
        yield [order[i : i + settings.batch_size] for i in range(0, num_pairs, settings.batch_size)]


def learning_rate_at(step: int, num_steps: int, settings: TrainSettings) -> float:
    """Linear warmup over the first share of steps, then half a cosine towards 0. `step` counts from 0."""
    num_warmup = round(settings.warmup_ratio * num_steps)
    if step < num_warmup:
        return settings.learning_rate * (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
