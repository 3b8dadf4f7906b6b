"""One round from base weights to a saved adapter and a report.

Order: reference log-probabilities and base probes (no adapter exists yet) → the live version on the
held-out pairs → the policy's adapter → training under the drift guard, with the held-out pairs after every
epoch → probes of the candidate → the adapter, under its final name only when whole. Held-out rewards and
margins are always measured against base, whatever the training's reference, so that versions compare.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpo_studio.domain.chat import Message
from dpo_studio.domain.round import ProbeSummary, RoundJob, RoundReport
from dpo_studio.dpo.batches import TokenPair, TokenSequence, most_responses, response_lengths
from dpo_studio.dpo.evaluate import evaluate
from dpo_studio.dpo.failures import TrainingCancelled, TrainingFailed
from dpo_studio.dpo.layouts import LADDER, PADDED
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.losses import best_and_worst, margins
from dpo_studio.dpo.memory_estimate import estimate_memory, fit_budget
from dpo_studio.dpo.metrics import prefixed
from dpo_studio.dpo.self_check import LayoutChoice, choose_layout
from dpo_studio.files import canonical_json, publish_folder, sha256_of_tree, temporary_name
from dpo_studio.modeling.adapters import check_adapter_folder, load_lora, new_lora, save_lora
from dpo_studio.modeling.base_model import BaseModel
from dpo_studio.training.checkpoint import CheckpointFile, State, owner_of
from dpo_studio.training.encoding import EncodedPairs, encode_pairs
from dpo_studio.training.fit import Fit, FitData
from dpo_studio.training.job import Assignment
from dpo_studio.training.probes import MAX_TOKENS, kl_per_token, sample_answers, summarise
from dpo_studio.training.scoring import RoundScores
from dpo_studio.training.surroundings import Surroundings

_LOG = logging.getLogger(__name__)


class RoundTraining:
    """Trains one assignment. Use once: the base model ends up with the adapter inside."""

    def __init__(self, assignment: Assignment, around: Surroundings) -> None:
        """Raises TrainingFailed when no pair can be used or the base weights are not the job's."""
        self._job = assignment.job
        self._settings = assignment.job.settings
        self._around = around
        self._model: Any = around.base.model
        check_base(self._job, around.base)
        self._notes: list[str] = []
        prompts = [tuple(around.chat.prompt_ids([Message("user", p)])) for p in self._job.probe_prompts]
        # Only those that leave room for an answer.
        self._probe_prompts = [p for p in prompts if len(p) + MAX_TOKENS <= around.base.context_length]
        self._train = self._encode(assignment.train)
        self._heldout = self._encode(assignment.heldout)
        if not self._train.pairs:
            raise TrainingFailed(_no_pairs(self._train, len(self._heldout.pairs)))
        self._notes.extend(_rankings([*self._train.pairs, *self._heldout.pairs]))

    def run(self, adapter_folder: Path) -> RoundReport:
        """Train, and leave the adapter in `adapter_folder` (which must not exist).

        Raises TrainingFailed or TrainingCancelled, leaving no adapter behind.
        """
        started = time.monotonic()
        choice = self._choose_layout()
        scores = RoundScores(self._around, choice.layout, self._job.reference_cache)
        checkpoint = self._checkpoint(choice)
        resumed = self._read(checkpoint)
        data = self._score_references(scores, choice, resumed)
        base_probe = self._probe_base()
        live_heldout = self._score_live(scores)
        self._model = self._starting_policy()
        if self._starts_elsewhere and resumed is None:
            data = self._score_start(scores, data)
        fitted = Fit(self._model, data, self._settings, self._around, scores, checkpoint).run(resumed)
        metrics = fitted.metrics
        if live_heldout is not None:
            live = evaluate(live_heldout, data.base_heldout, data.heldout, self._settings)
            metrics = metrics | prefixed("live", live)
        candidate_probe = self._probe_candidate()
        return RoundReport(
            ok=True,
            reason="",
            num_steps=fitted.num_steps,
            num_train=len(self._train.pairs),
            num_heldout=len(self._heldout.pairs),
            num_truncated=self._train.num_truncated + self._heldout.num_truncated,
            num_dropped=self._train.num_dropped + self._heldout.num_dropped,
            train_seconds=time.monotonic() - started,
            metrics=metrics,
            heldout_margins=self._margins(fitted.heldout, data.base_heldout),
            live_margins=() if live_heldout is None else self._margins(live_heldout, data.base_heldout),
            candidate_probe=candidate_probe,
            base_probe=base_probe,
            adapter_sha256=self._save(adapter_folder),
            layout=choice.explain(),
            notes=(*self._notes, *fitted.notes),
            num_reference_computed=scores.num_computed,
            num_reference_known=scores.num_known,
        )

    def _encode(self, pairs: Sequence[Any]) -> EncodedPairs:
        base = self._around.base
        return encode_pairs(
            pairs,
            self._around.chat.encode_pair,
            max_length=min(self._settings.max_length, base.context_length),
            vocabulary=base.model.get_input_embeddings().weight.shape[0],
            soft_labels=self._settings.soft_labels,
        )

    def _choose_layout(self) -> LayoutChoice:
        """The cheapest layout that is exact for this model, the same one in every process.

        Checked with a fresh adapter that is gone afterwards: no other exists yet, and none is needed. Before
        that, the memory budget is set to what will fit; raises TrainingFailed when nothing does.
        """
        settings, around = self._settings, self._around
        adapted = new_lora(self._model, settings.lora_rank, settings.lora_alpha, settings.seed)
        try:
            self._fit_memory(adapted)
            choice = choose_layout(
                adapted,
                [*self._train.pairs, *self._heldout.pairs],
                is_recomputing=around.budget.is_recomputing,
            )
        finally:
            self._model = adapted.unload()
        rungs = torch.zeros(len(LADDER), device=around.base.device)
        rungs[LADDER.index(choice.layout)] = 1.0
        common = LADDER[int(around.world.sum(rungs).nonzero().max())]
        if common is not choice.layout:
            choice = LayoutChoice(common, (*choice.reasons, "Another process could not use a cheaper layout"))
        _LOG.info("%s", choice.explain())
        return choice

    def _fit_memory(self, adapted: Any) -> None:
        around, settings = self._around, self._settings
        if around.free_memory is None:
            return
        estimate = estimate_memory(adapted)
        _LOG.info("%s", estimate.explain(around.budget.max_tokens, around.free_memory))
        fit_budget(
            around.budget,
            estimate,
            PADDED,
            self._train.pairs,
            free=around.free_memory,
            max_length=settings.max_length,
            lora_rank=settings.lora_rank,
        )

    def _checkpoint(self, choice: LayoutChoice) -> CheckpointFile:
        base = self._around.base
        owner = owner_of(
            self._job, choice.layout.name, f"{base.device.type} {base.precision}", self._around.world.size
        )
        return CheckpointFile(self._around.checkpoint, owner, every_s=self._job.checkpoint_every_s)

    def _read(self, checkpoint: CheckpointFile) -> State | None:
        """Where an earlier worker on this folder stood, if it can be gone on from; notes what was found."""
        found, world = checkpoint.read(), self._around.world
        if found.fault:
            self._notes.append(f"A checkpoint {found.fault} and was not used; training began anew.")
        # On several machines the file may be on one of them only.
        num_found = world.sum(torch.tensor([float(found.state is not None)], device=self._around.base.device))
        if found.state is None or num_found.item() < world.size:
            return None
        steps = found.state["trainer/num_done"]
        self._notes.append(f"Training was interrupted and continued after step {steps}.")
        return found.state

    def _score_references(self, scores: RoundScores, choice: LayoutChoice, resumed: State | None) -> FitData:
        """Score all pairs under base, which the model now is, or take the scores of the worker before."""
        if resumed is not None:
            reference, base_heldout = resumed["reference"], resumed["base_heldout"]
        else:
            reference = scores.of_reference(self._model, self._train.pairs, self._settings.ld_alpha)
            base_heldout = scores.of_reference(self._model, self._heldout.pairs)
        return FitData(
            train=self._train.pairs,
            heldout=self._heldout.pairs,
            reference=reference,
            base_heldout=base_heldout,
            probe_prompts=tuple(self._probe_prompts),
            layout=choice.layout,
        )

    def _score_start(self, scores: RoundScores, data: FitData) -> FitData:
        """The same data with the starting policy as the reference."""
        start = canonical_json(sha256_of_tree(Path(str(self._job.start_adapter))))
        reference = scores.of_reference(self._model, data.train, self._settings.ld_alpha, start)
        return replace(data, reference=reference)

    def _score_live(self, scores: RoundScores) -> Tensor | None:
        """Held-out log-probabilities of the live version; None when live is base."""
        if self._job.live_adapter is None:
            return None
        live = self._load_adapter(self._job.live_adapter)
        scored = scores.of(live, self._heldout.pairs)
        self._model = live.unload()
        return scored

    @property
    def _starts_from_live(self) -> bool:
        return self._settings.start_from == "live" and self._job.start_adapter is not None

    @property
    def _starts_elsewhere(self) -> bool:
        """Whether the reference is another than base."""
        return self._settings.reference == "start" and self._starts_from_live

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
        """Reward margins β·h of the held-out pairs, in file order; of a ranking best over worst."""
        ends = best_and_worst(policy - reference, response_lengths(self._heldout.pairs))
        return tuple((self._settings.beta * margins(ends)).tolist())

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


def _rankings(pairs: Sequence[TokenPair]) -> list[str]:
    """How many are rankings that train whole, as a sentence; nothing where none is."""
    count = sum(bool(pair.between) for pair in pairs)
    if not count:
        return []
    return [f"{count} of {len(pairs)} pairs are whole rankings, of up to {most_responses(pairs)} responses."]


def _no_pairs(encoded: EncodedPairs, num_heldout: int) -> str:
    if not encoded.num_dropped and num_heldout:
        return (
            f"Training needs at least one pair, and all {num_heldout} of the round are held out;"
            " label answers to other prompts"
        )
    if not encoded.num_dropped:
        return "Training needs at least one pair, and the round has none; label some more"
    return (
        f"None of the {encoded.num_dropped} training pairs can be used: {encoded.explain_drops()};"
        " label some more"
    )
