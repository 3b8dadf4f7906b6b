"""The training loop: pairs and their reference log-probabilities in, a trained adapter out.

Trains whatever parameters of the model require gradients, by AdamW, with linear warmup and cosine decay.
Always holds: a step's gradient is that of the mean loss over its pairs, however it was split into
micro-batches and processes, and for the last, shorter batch of an epoch too; on a CPU the same seed and
thread count give the same bits. Writes nothing and prints nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.dpo.evaluate import response_lengths
from dpo_studio.dpo.failures import TrainingCancelled, TrainingFailed
from dpo_studio.dpo.layouts import PADDED, Layout, pair_logps
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.losses import preference_losses, sft_losses
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.metrics import METRIC_NAMES, preference_sums
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
        """reference: (pairs, 2) float64, summed log-probabilities of the reference on `pairs`.

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
        self._parameters = [p for p in scorer.model.parameters() if p.requires_grad]
        self._device = self._parameters[0].device
        self._reference = reference.to(self._device)
        self._lengths = response_lengths(pairs).to(self._device)
        self._optimizer = torch.optim.AdamW(self._parameters, lr=settings.learning_rate, weight_decay=0.0)

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
                if self._world.agree(self._should_stop(), self._device):
                    raise TrainingCancelled
                metrics = self._step(step, batch)
                step += 1
                yield StepResult(step, number == len(batches) - 1, metrics)

    def _step(self, step: int, batch: list[int]) -> dict[str, float]:
        learning_rate = learning_rate_at(step, self.num_steps, self._settings)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        share = list(self._world.share(batch))
        sums = self._budget.run(
            [self._layout.size(self._pairs[index]) for index in share],
            lambda groups: self._accumulate([[share[i] for i in group] for group in groups], len(batch)),
            layout=self._layout,
        )
        grad_norm = self._synchronise_and_clip()
        names = list(sums)
        totals: list[float] = self._world.sum(torch.stack([sums[name] for name in names])).tolist()
        metrics = {name: total / len(batch) for name, total in zip(names, totals, strict=True)}
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
        sums = dict.fromkeys(
            ("loss", *METRIC_NAMES), torch.zeros((), dtype=self._reference.dtype, device=self._device)
        )
        for group in groups:
            policy = pair_logps(
                self._scorer,
                [self._pairs[index] for index in group],
                self._layout,
                tail_weight=self._settings.ld_alpha,
            )
            reference, lengths = self._reference[group], self._lengths[group]
            losses = preference_losses(policy - reference, self._settings, lengths)
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
