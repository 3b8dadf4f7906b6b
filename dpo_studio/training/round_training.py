"""One round from base weights to a saved adapter and a report.

Order: reference log-probabilities and base probes (no adapter exists yet) → the live version on the
held-out pairs → the policy's adapter → training under the drift guard, with the held-out pairs after every
epoch → probes of the candidate → the adapter, under its final name only when whole. Held-out rewards and
margins are always measured against base, whatever the training's reference, so that versions compare.
"""

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_studio.domain.chat import Message
from dpo_studio.domain.round import ProbeSummary, RoundJob, RoundReport
from dpo_studio.dpo.batches import TokenPair, TokenSequence
from dpo_studio.dpo.evaluate import evaluate, score_pairs
from dpo_studio.dpo.failures import TrainingCancelled, TrainingFailed
from dpo_studio.dpo.layouts import LADDER, PADDED, Layout
from dpo_studio.dpo.layouts import VERSION as LAYOUT_VERSION
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.losses import margins
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.metrics import prefixed
from dpo_studio.dpo.self_check import LayoutChoice, choose_layout
from dpo_studio.dpo.trainer import Trainer
from dpo_studio.dpo.world import World
from dpo_studio.files import canonical_json, publish_folder, sha256_of_tree, temporary_name
from dpo_studio.modeling.adapters import check_adapter_folder, load_lora, new_lora, save_lora
from dpo_studio.modeling.base_model import BaseModel
from dpo_studio.modeling.chat_format import ChatFormat
from dpo_studio.training.drift import DriftGuard
from dpo_studio.training.encoding import EncodedPairs, encode_pairs
from dpo_studio.training.job import Assignment
from dpo_studio.training.lifeline import Cancellation
from dpo_studio.training.probes import MAX_TOKENS, kl_per_token, sample_answers, summarise
from dpo_studio.training.progress import ProgressLog
from dpo_studio.training.reference_cache import ReferenceCache, ReferenceKey

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a round needs beside its data."""

    base: BaseModel
    chat: ChatFormat
    world: World
    is_main: bool
    progress: ProgressLog
    cancellation: Cancellation
    budget: MemoryBudget


class RoundTraining:
    """Trains one assignment. Use once: the base model ends up with the adapter inside."""

    def __init__(self, assignment: Assignment, around: Surroundings) -> None:
        """Raises TrainingFailed when no pair can be used or the base weights are not the job's."""
        self._job = assignment.job
        self._settings = assignment.job.settings
        self._around = around
        self._model: Any = around.base.model
        check_base(self._job, around.base)
        self._num_steps = 0
        self._metrics: dict[str, float] = {}
        self._layout: Layout = PADDED
        prompts = [tuple(around.chat.prompt_ids([Message("user", p)])) for p in self._job.probe_prompts]
        # Only those that leave room for an answer.
        self._probe_prompts = [p for p in prompts if len(p) + MAX_TOKENS <= around.base.context_length]
        self._train = self._encode(assignment.train)
        self._heldout = self._encode(assignment.heldout)
        if not self._train.pairs:
            raise TrainingFailed(_no_pairs(self._train))

    def run(self, adapter_folder: Path) -> RoundReport:
        """Train, and leave the adapter in `adapter_folder` (which must not exist).

        Raises TrainingFailed or TrainingCancelled, leaving no adapter behind.
        """
        started = time.monotonic()
        choice = self._choose_layout()
        self._layout = choice.layout
        reference = self._score_reference(self._train.pairs, self._settings.ld_alpha)
        base_heldout = self._score_reference(self._heldout.pairs, 1.0)
        base_probe = self._probe_base()
        live_heldout = self._score_live()
        self._model = self._starting_policy()
        if self._settings.reference == "start" and self._starts_from_live:
            start = sha256_of_tree(Path(str(self._job.start_adapter)))
            reference = self._score_reference(
                self._train.pairs, self._settings.ld_alpha, canonical_json(start)
            )
        heldout = self._fit(reference, base_heldout)
        if live_heldout is not None:
            live = evaluate(live_heldout, base_heldout, self._heldout.pairs, self._settings)
            self._metrics |= prefixed("live", live)
        candidate_probe = self._probe_candidate()
        return RoundReport(
            ok=True,
            reason="",
            num_steps=self._num_steps,
            num_train=len(self._train.pairs),
            num_heldout=len(self._heldout.pairs),
            num_truncated=self._train.num_truncated + self._heldout.num_truncated,
            num_dropped=self._train.num_dropped + self._heldout.num_dropped,
            train_seconds=time.monotonic() - started,
            metrics=self._metrics,
            heldout_margins=self._margins(heldout, base_heldout),
            live_margins=() if live_heldout is None else self._margins(live_heldout, base_heldout),
            candidate_probe=candidate_probe,
            base_probe=base_probe,
            adapter_sha256=self._save(adapter_folder),
            layout=choice.explain(),
        )

    def _encode(self, pairs: Sequence[Any]) -> EncodedPairs:
        base = self._around.base
        return encode_pairs(
            pairs,
            self._around.chat.encode_pair,
            max_length=min(self._settings.max_length, base.context_length),
            vocabulary=base.model.get_input_embeddings().weight.shape[0],
        )

    def _choose_layout(self) -> LayoutChoice:
        """The cheapest layout that is exact for this model, the same one in every process.

        Checked with a fresh adapter that is gone afterwards: no other exists yet, and none is needed.
        """
        settings, around = self._settings, self._around
        adapted = new_lora(self._model, settings.lora_rank, settings.lora_alpha, settings.seed)
        try:
            choice = choose_layout(adapted, [*self._train.pairs, *self._heldout.pairs])
        finally:
            self._model = adapted.unload()
        rungs = torch.zeros(len(LADDER), device=around.base.device)
        rungs[LADDER.index(choice.layout)] = 1.0
        common = LADDER[int(around.world.sum(rungs).nonzero().max())]
        if common is not choice.layout:
            choice = LayoutChoice(common, (*choice.reasons, "Another process could not use a cheaper layout"))
        _LOG.info("%s", choice.explain())
        return choice

    def _score_reference(
        self, pairs: Sequence[TokenPair], tail_weight: float, adapter_sha256: str = ""
    ) -> Tensor:
        """Score with the model as it now is what no earlier round has, and report how far it is."""
        around, num_pairs = self._around, len(pairs)
        cache = self._reference_cache(tail_weight, adapter_sha256)
        logps = torch.full((num_pairs, 2), math.nan, dtype=torch.float64)
        if cache is not None:
            # The main process reads for all, or two could disagree about which pairs are left to score.
            found = cache.find(pairs) if around.is_main else torch.zeros_like(logps)
            logps = around.world.sum(found.to(around.base.device)).cpu()
        missing = logps.isnan().any(dim=1).nonzero().flatten().tolist()
        num_known = num_pairs - len(missing)
        around.progress.report("reference", num_known, num_pairs)
        logps[missing] = self._score(
            [pairs[index] for index in missing],
            tail_weight=tail_weight,
            on_scored=lambda done: around.progress.report("reference", num_known + done, num_pairs),
        )
        if cache is not None and around.is_main and missing:
            cache.keep(pairs, logps)
        return logps

    def _reference_cache(self, tail_weight: float, adapter_sha256: str) -> ReferenceCache | None:
        folder, base = self._job.reference_cache, self._around.base
        if folder is None:
            return None
        key = ReferenceKey(
            model_sha256=base.model_sha256,
            adapter_sha256=adapter_sha256,
            dtype=str(base.dtype),
            device=base.device.type,
            layout=self._layout.name,
            layout_version=LAYOUT_VERSION,
            tail_weight=tail_weight,
        )
        return ReferenceCache(Path(folder), key)

    def _score(
        self,
        pairs: Sequence[TokenPair],
        *,
        tail_weight: float = 1.0,
        on_scored: Callable[[int], None] = lambda _: None,
    ) -> Tensor:
        around = self._around
        return score_pairs(
            ResponseScorer(self._model),
            pairs,
            around.budget,
            layout=self._layout,
            tail_weight=tail_weight,
            world=around.world,
            should_stop=around.cancellation.requested,
            on_scored=on_scored,
        )

    def _score_live(self) -> Tensor | None:
        """Held-out log-probabilities of the live version; None when live is base."""
        if self._job.live_adapter is None:
            return None
        live = self._load_adapter(self._job.live_adapter)
        self._model = live
        scored = self._score(self._heldout.pairs)
        self._model = live.unload()
        return scored

    @property
    def _starts_from_live(self) -> bool:
        return self._settings.start_from == "live" and self._job.start_adapter is not None

    def _starting_policy(self) -> Any:
        settings = self._settings
        if self._starts_from_live:
            return self._load_adapter(str(self._job.start_adapter))
        return new_lora(self._model, settings.lora_rank, settings.lora_alpha, settings.seed)

    def _load_adapter(self, folder: str) -> Any:
        check_adapter_folder(Path(folder), model_sha256=self._job.model_sha256)
        try:
            return load_lora(self._model, Path(folder))
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingFailed(
                f"The adapter in {folder} was expected to fit {self._job.model}, and does not;"
                " roll back to another version"
            ) from error

    def _fit(self, reference: Tensor, base_heldout: Tensor) -> Tensor:
        """Train until the end or until the drift guard stops it. Returns the held-out log-probabilities.

        Leaves the steps taken in `_num_steps`, and their mean metrics over one epoch in `_metrics`.
        """
        trainer, guard = self._trainer(reference), self._drift_guard()
        history: list[dict[str, float]] = []
        heldout = base_heldout
        report = self._around.progress.report
        report("training", 0, trainer.num_steps)
        for result in trainer.steps():
            metrics = dict(result.metrics)
            if guard.is_due(result.step, trainer.num_steps):
                metrics["kl_per_token"] = guard.check(result.step)
            if result.is_epoch_end:
                heldout = self._score(self._heldout.pairs)
                metrics |= self._heldout_metrics(heldout, base_heldout)
            check_finite(metrics, result.step)
            history.append(result.metrics)
            report("training", result.step, trainer.num_steps, metrics)
            if guard.is_exceeded:
                break
        self._num_steps = len(history)
        if guard.is_exceeded:
            self._num_steps = guard.restore() or len(history)
            heldout = self._score(self._heldout.pairs)
        epoch_length = trainer.num_steps // self._settings.epochs
        epoch = history[: self._num_steps][-epoch_length:]
        self._metrics = {name: sum(step[name] for step in epoch) / len(epoch) for name in epoch[0]}
        self._metrics |= self._heldout_metrics(heldout, base_heldout)
        if guard.is_exceeded:
            self._metrics["planned_steps"] = trainer.num_steps
        check_finite(self._metrics, self._num_steps)
        return heldout

    def _trainer(self, reference: Tensor) -> Trainer:
        around = self._around
        return Trainer(
            ResponseScorer(self._model),
            self._train.pairs,
            reference,
            self._settings,
            layout=self._layout,
            budget=around.budget,
            world=around.world,
            should_stop=around.cancellation.requested,
        )

    def _drift_guard(self) -> DriftGuard:
        around = self._around
        return DriftGuard(
            self._model,
            [*self._probe_prompts, *(pair.prompt for pair in self._train.pairs)],
            eos_ids=around.chat.eos_ids,
            context_length=around.base.context_length,
            seed=self._settings.seed,
            world=around.world,
            should_stop=around.cancellation.requested,
        )

    def _heldout_metrics(self, policy: Tensor, base: Tensor) -> dict[str, float]:
        return prefixed("heldout", evaluate(policy, base, self._heldout.pairs, self._settings))

    def _probe_base(self) -> ProbeSummary | None:
        answers = self._answers()
        return summarise(answers, self._around.chat.eos_ids, 0.0) if answers else None

    def _probe_candidate(self) -> ProbeSummary | None:
        answers = self._answers()
        if not answers:
            return None
        kl = kl_per_token(ResponseScorer(self._model), answers, self._model.disable_adapter)
        return summarise(answers, self._around.chat.eos_ids, kl)

    def _answers(self) -> list[TokenSequence]:
        """Sampled answers to the probe prompts; only the main process samples."""
        around = self._around
        if not self._probe_prompts or not around.is_main:
            return []
        around.progress.report("evaluating", 0, 0)
        answers = sample_answers(
            self._model.eval(),
            self._probe_prompts,
            eos_ids=around.chat.eos_ids,
            seed=self._settings.seed,
            should_stop=around.cancellation.requested,
        )
        if around.cancellation.requested():
            raise TrainingCancelled
        return answers

    def _margins(self, policy: Tensor, reference: Tensor) -> tuple[float, ...]:
        """Reward margins β·h, in file order."""
        return tuple((self._settings.beta * margins(policy - reference)).tolist())

    def _save(self, folder: Path) -> dict[str, str]:
        """Write the adapter beside its place, then move it there. Returns the sha256 of its files."""
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad and not torch.isfinite(parameter).all():
                raise TrainingFailed(f"The adapter's {name} is not finite; use a lower learning rate")
        if not self._around.is_main:
            return {}
        temporary = temporary_name(folder)
        try:
            save_lora(self._model, temporary)
            publish_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return sha256_of_tree(folder)


def check_base(job: RoundJob, base: BaseModel) -> None:
    """Refuse to train on other weights than those that answered."""
    if base.model_sha256 != job.model_sha256:
        raise TrainingFailed(
            f"The model {job.model} was expected to have the weights {job.model_sha256} that answered,"
            f" and has {base.model_sha256}; restart the studio so that both use the same"
        )


def check_finite(metrics: Mapping[str, float], step: int) -> None:
    """Refuse a model whose numbers broke after its last step's loss was taken."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingFailed(f"{name} became {value} after step {step}; use a lower learning rate")


def _no_pairs(encoded: EncodedPairs) -> str:
    if not encoded.num_dropped:
        return "Training needs at least one pair, and the round has none; label some more"
    return (
        f"None of the {encoded.num_dropped} training pairs can be used: {encoded.explain_drops()};"
        " label some more"
    )
