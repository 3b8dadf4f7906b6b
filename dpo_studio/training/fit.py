"""The training of a round's adapter: steps under watch, until the end or until going on would do harm.

Every step may be the last this process takes: what stands then is in the checkpoint, and another process goes
on from it to the same adapter, bit by bit on a CPU. Two watchers may end training early, the drift guard (the
model leaves its base) and the early stop (the held-out pairs no longer gain); the adapter that stays is the
one that they settle on.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.dpo.evaluate import evaluate
from dpo_studio.dpo.failures import TrainingFailed
from dpo_studio.dpo.layouts import Layout
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.metrics import prefixed as named
from dpo_studio.dpo.trainer import Trainer
from dpo_studio.training.checkpoint import CheckpointFile, State, part, prefixed
from dpo_studio.training.drift import DriftGuard
from dpo_studio.training.early_stop import EarlyStop
from dpo_studio.training.scoring import RoundScores
from dpo_studio.training.surroundings import Surroundings

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FitData:
    """What is trained on and measured by, with the reference's log-probabilities of it."""

    train: tuple[TokenPair, ...]
    heldout: tuple[TokenPair, ...]
    reference: Tensor
    """(train pairs, most responses) float64, under the training's reference."""
    base_heldout: Tensor
    """(held-out pairs, most responses) float64, under base."""
    probe_prompts: tuple[tuple[int, ...], ...]
    layout: Layout


@dataclass(frozen=True, slots=True)
class Fitted:
    """What the training came to; the adapter is in the model."""

    num_steps: int
    """Those that the adapter stands for, which may be fewer than were taken."""
    metrics: dict[str, float]
    """Means over its last epoch, and `heldout/…`."""
    heldout: Tensor
    """(held-out pairs, most responses) float64: log-probabilities under the adapter."""
    notes: tuple[str, ...]


class Fit:
    """One training. Use once."""

    def __init__(
        self,
        model: Any,
        data: FitData,
        settings: TrainSettings,
        around: Surroundings,
        scores: RoundScores,
        checkpoint: CheckpointFile,
    ) -> None:
        """model: with the starting policy's adapter, which is trained in place."""
        self._model = model
        self._data = data
        self._settings = settings
        self._around = around
        self._scores = scores
        self._checkpoint = checkpoint
        self._trainer = Trainer(
            ResponseScorer(model),
            data.train,
            data.reference,
            settings,
            layout=data.layout,
            budget=around.budget,
            world=around.world,
            should_stop=around.cancellation.requested,
        )
        self._guard = DriftGuard(
            model,
            [*data.probe_prompts, *(pair.prompt for pair in data.train)],
            eos_ids=around.chat.eos_ids,
            context_length=around.base.context_length,
            seed=settings.seed,
            world=around.world,
            should_stop=around.cancellation.requested,
        )
        self._early = EarlyStop(model, settings.early_stop_patience)
        self._history: list[dict[str, float]] = []
        self._heldout = data.base_heldout.clone()
        self._notes: list[str] = []

    def run(self, resumed: State | None = None) -> Fitted:
        """Train, from where `resumed` stands if given. Raises TrainingFailed or TrainingCancelled."""
        if resumed is not None:
            self._load(resumed)
        self._take_steps()
        kept = self._settle()
        epoch_length = self._trainer.num_steps // self._settings.epochs
        epoch = self._history[:kept][-epoch_length:]
        metrics = {name: sum(step[name] for step in epoch) / len(epoch) for name in epoch[0]}
        metrics |= self._heldout_metrics(self._heldout)
        if self._guard.is_exceeded:
            metrics["planned_steps"] = self._trainer.num_steps
        check_finite(metrics, kept)
        short = self._around.budget.explain()
        if short:
            self._notes.append(short)
        return Fitted(kept, metrics, self._heldout, tuple(self._notes))

    def _take_steps(self) -> None:
        trainer, guard, early = self._trainer, self._guard, self._early
        report = self._around.progress.report
        report("training", len(self._history), trainer.num_steps)
        for result in trainer.steps():
            metrics = dict(result.metrics)
            if guard.is_due(result.step, trainer.num_steps):
                metrics["kl_per_token"] = guard.check(result.step)
            if result.is_epoch_end:
                self._heldout = self._score_heldout()
                measured = self._heldout_metrics(self._heldout)
                metrics |= measured
                early.record(result.step, measured.get("heldout/loss"), self._heldout)
            check_finite(metrics, result.step)
            self._history.append(result.metrics)
            report("training", result.step, trainer.num_steps, metrics)
            if guard.is_exceeded or early.is_exhausted:
                return
            if self._around.is_main and self._checkpoint.is_due:
                self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        try:
            self._checkpoint.write(self._state())
        except OSError as error:
            # Training goes on without: losing it would be worse than losing the way back to it.
            _LOG.warning("The checkpoint could not be written: %s", error)

    def _settle(self) -> int:
        """Put the adapter that shall stay into the model; returns the number of steps it stands for."""
        guard, early = self._guard, self._early
        taken = kept = len(self._history)
        if guard.is_exceeded:
            kept = self._step_back(taken)
            self._notes.append(f"Training ended after step {taken}, before the model drifted too far.")
        if not self._data.heldout and self._settings.early_stop_patience:
            self._notes.append("Early stop had no held-out pairs to watch.")
        if 0 < early.best_step <= kept and early.best_loss < self._heldout_loss():
            kept = early.best_step
            self._heldout = early.restore()
            # The guard has looked only every so often, and perhaps not since before this step.
            if kept > guard.kept_step and guard.is_due(kept, kept):
                guard.check(kept)
            if kept > guard.kept_step and guard.is_exceeded:
                kept = self._step_back(kept)
                self._notes.append(
                    f"The adapter after step {early.best_step} of {taken} had the lowest held-out loss, and"
                    f" drifted too far: the one after step {kept} was kept."
                )
            else:
                self._notes.append(
                    f"The adapter after step {kept} of {taken} was kept: its held-out loss of"
                    f" {early.best_loss:.4f} was the lowest."
                )
        return kept

    def _step_back(self, taken: int) -> int:
        restored = self._guard.restore()
        kept = taken if restored is None else max(restored, 1)  # less than a step of the way counts as one
        self._heldout = self._score_heldout()
        return kept

    def _score_heldout(self) -> Tensor:
        return self._scores.of(self._model, self._data.heldout)

    def _heldout_loss(self) -> float:
        return self._heldout_metrics(self._heldout).get("heldout/loss", math.inf)

    def _heldout_metrics(self, policy: Tensor) -> dict[str, float]:
        data = self._data
        return named("heldout", evaluate(policy, data.base_heldout, data.heldout, self._settings))

    def _state(self) -> State:
        names = list(self._history[0])
        history = [[step[name] for name in names] for step in self._history]
        return {
            **prefixed("trainer", self._trainer.state_dict()),
            **prefixed("guard", self._guard.state_dict()),
            **prefixed("early", self._early.state_dict()),
            **prefixed("budget", self._around.budget.state_dict()),
            **prefixed("scores", {"computed": self._scores.num_computed, "known": self._scores.num_known}),
            "names": names,
            "history": torch.tensor(history, dtype=torch.float64),
            "heldout": self._heldout,
            "reference": self._data.reference,
            "base_heldout": self._data.base_heldout,
        }

    def _load(self, state: State) -> None:
        self._trainer.load_state_dict(part("trainer", state))
        self._guard.load_state_dict(part("guard", state))
        self._early.load_state_dict(part("early", state))
        self._around.budget.load_state_dict(part("budget", state))
        counts = part("scores", state)
        self._scores.num_computed, self._scores.num_known = counts["computed"], counts["known"]
        rows = state["history"].tolist()
        self._history = [dict(zip(state["names"], row, strict=True)) for row in rows]
        self._heldout = state["heldout"]


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Refuse a model whose numbers broke after its last step's loss was taken."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingFailed(f"{name} became {value} after step {step}; use a lower learning rate")
