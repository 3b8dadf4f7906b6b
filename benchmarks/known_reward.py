"""A reward that is known: pairs labelled by it, and how much of it a policy earns at what distance from base.

Everything is drawn at temperature 1 over the whole vocabulary, so that answers come from the very
distribution whose KL is meant.
"""

import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.frontier_rows import Point
from benchmarks.sampler import Conversation, Sampler
from dpo_studio.domain.chat import BASE, Completion
from dpo_studio.dpo.batches import Batch, TokenPair, TokenSequence, pad_sequences
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.modeling.adapters import save_lora
from dpo_studio.tastes import Taste

TEMPERATURE = 1.0
_FIRST_SEED = 2_000_000_000
"""Of the labelled answers; the measurement's begin at 0."""
_SEEDS_A_LAP = 10_000
_ROWS_AT_ONCE = 64


class SequenceScorer(Protocol):
    """What the estimate needs of a `ResponseScorer`."""

    def sequence_logps(self, batch: Batch) -> Tensor:
        """(sequences,): the sum of each response's token log-probabilities."""
        ...


@dataclass(frozen=True, slots=True)
class Measurement:
    """Held-out prompts and the reward of answers to them."""

    sampler: Sampler
    prompts: Sequence[Conversation]
    taste: Taste
    num_samples: int
    """Answers to each prompt."""

    def of_base(self) -> Point:
        """Where every policy starts: its KL is 0 by definition."""
        answers = self._answers(BASE)
        return self._point(0, answers, [0.0 for group in answers for _ in group])

    def of_policy(self, policy: PeftModel, step: int) -> Point:
        """`policy` must be an adapter on the sampler's base. Always the same random numbers."""
        with tempfile.TemporaryDirectory() as folder:
            save_lora(policy, Path(folder))
            self.sampler.load("policy", Path(folder))
        try:
            answers = self._answers("policy")
        finally:
            self.sampler.unload("policy")
        chat = self.sampler.base.chat_format()
        sequences = [
            TokenSequence(tuple(chat.prompt_ids(messages)), answer.token_ids)
            for messages, group in zip(self.prompts, answers, strict=True)
            for answer in group
        ]
        device = next(policy.parameters()).device
        kls = log_ratios(ResponseScorer(policy), sequences, policy.disable_adapter, device)
        return self._point(step, answers, kls)

    def _answers(self, version: str) -> list[list[Completion]]:
        return self.sampler.answers(
            self.prompts, version, seed=0, n=self.num_samples, temperature=TEMPERATURE
        )

    def _point(self, step: int, answers: Sequence[Sequence[Completion]], kls: Sequence[float]) -> Point:
        rewards = [self.taste.score(answer.text) for group in answers for answer in group]
        return Point(
            step=step,
            rewards=means_by_prompt(rewards, self.num_samples),
            kls=means_by_prompt(kls, self.num_samples),
            tokens=fmean(len(answer.token_ids) for group in answers for answer in group),
        )


@torch.no_grad()
def log_ratios(
    scorer: SequenceScorer,
    answers: Sequence[TokenSequence],
    as_base: Callable[[], AbstractContextManager[None]],
    device: torch.device,
) -> list[float]:
    """log π(y|x) − log π_base(y|x) of each answer, summed over its tokens, in nats.

    Their mean over answers that π itself drew estimates KL(π ‖ base) a sequence without bias, as in Rafailov
    et al. 2023 (arXiv 2305.18290), figure 2; one of them alone may be negative. `as_base` is a context in
    which the scorer's model answers as base.
    """
    found: list[float] = []
    for start in range(0, len(answers), _ROWS_AT_ONCE):
        batch = pad_sequences(answers[start : start + _ROWS_AT_ONCE], device)
        policy = scorer.sequence_logps(batch)
        with as_base():
            found += (policy - scorer.sequence_logps(batch)).tolist()
    return found


def means_by_prompt(values: Sequence[float], num_samples: int) -> tuple[float, ...]:
    """values: of all answers, those to one prompt in a row. Rounded to what a file should keep."""
    groups = [values[start : start + num_samples] for start in range(0, len(values), num_samples)]
    return tuple(round(fmean(group), 6) for group in groups)


def sampled_pairs(
    sampler: Sampler, prompts: Sequence[Conversation], taste: Taste, count: int, *, scale: float, seed: int
) -> list[TokenPair]:
    """`count` pairs of base's answers to `prompts`, lap after lap, labelled by Bradley–Terry on the score.

    Two equal answers make no pair. Answers that differ and score the same do: a coin decides, as it would in
    the model of the labels.
    """
    assert len(prompts) <= _SEEDS_A_LAP
    chat, rng = sampler.base.chat_format(), random.Random(seed)
    pairs: list[TokenPair] = []
    for messages, (a, b) in _compared(sampler, prompts, seed):
        if len(pairs) == count:
            break
        if a.text.strip() != b.text.strip():
            is_a_chosen = prefers_first(taste.score(a.text), taste.score(b.text), scale, rng)
            chosen, rejected = (a, b) if is_a_chosen else (b, a)
            prompt = tuple(chat.prompt_ids(messages))
            pairs.append(TokenPair(prompt, chosen.token_ids, rejected.token_ids))
    return pairs


def prefers_first(reward_a: float, reward_b: float, scale: float, rng: random.Random) -> bool:
    """Whether a labeler takes a over b: with probability σ(scale · (r_a − r_b)), Bradley and Terry 1952.

    Draws one number from `rng`.
    """
    return rng.random() < preference_probability(reward_a, reward_b, scale)


def preference_probability(reward_a: float, reward_b: float, scale: float) -> float:
    """σ(scale · (r_a − r_b)). With such labels DPO's optimum is π ∝ π_base · exp(scale · r / β)."""
    logit = scale * (reward_a - reward_b)
    # The exponent is never positive, so nothing overflows.
    tail = math.exp(-abs(logit))
    return 1 / (1 + tail) if logit >= 0 else tail / (1 + tail)


def _compared(
    sampler: Sampler, prompts: Sequence[Conversation], seed: int
) -> Iterator[tuple[Conversation, list[Completion]]]:
    """Without end: every prompt with two answers, then every prompt with two others."""
    lap = 0
    while True:
        first = _FIRST_SEED + _SEEDS_A_LAP * (100 * seed + lap)
        answers = sampler.answers(prompts, BASE, seed=first, n=2, temperature=TEMPERATURE)
        yield from zip(prompts, answers, strict=True)
        lap += 1
