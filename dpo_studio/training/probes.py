"""Sample answers to a few prompts and say whether they look healthy.

Sampling is as labelers see it: temperature 0.9 over the whole vocabulary, no penalties. Each answer is
capped, so "ended" means "ended by itself before the cap".
"""

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from dpo_studio.domain.round import ProbeSummary
from dpo_studio.dpo.batches import TokenSequence, pad_sequences
from dpo_studio.dpo.logps import ResponseScorer

TEMPERATURE = 0.9
MAX_TOKENS = 96
# Two answers a prompt: with a dozen prompts, one unlucky answer then moves a share by 4 points, not 8.
SAMPLES_PER_PROMPT = 2
_ROWS_AT_ONCE = 64

# A run this much shorter than the answer, or of fewer repeats, is emphasis and not a loop.
_LOOP_MIN_REPEATS = 3
_LOOP_MIN_SHARE = 0.5
_LOOP_MAX_PERIOD = 32


def sample_answers(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    eos_ids: Collection[int],
    seed: int,
    samples_per_prompt: int = SAMPLES_PER_PROMPT,
    max_tokens: int = MAX_TOKENS,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[TokenSequence]:
    """Answers to each prompt in turn, EOS included where the model ended by itself.

    The same seed gives the same answers on a CPU; torch's global generators are left as they were.
    """
    rows = [prompt for prompt in prompts for _ in range(samples_per_prompt)]
    device = next(model.parameters()).device
    answers: list[TokenSequence] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            if not should_stop():
                part = rows[start : start + _ROWS_AT_ONCE]
                answers.extend(_generate(model, part, eos_ids, max_tokens, should_stop))
    return answers


def summarise(
    answers: Sequence[TokenSequence], eos_ids: Collection[int], kl_per_token: float
) -> ProbeSummary:
    """Shares and means over at least one answer. An answer that is only EOS counts as empty."""
    bodies = [[token for token in answer.response if token not in eos_ids] for answer in answers]
    count = len(answers)
    return ProbeSummary(
        num_samples=count,
        ended_share=sum(answer.response[-1] in eos_ids for answer in answers) / count,
        looping_share=sum(is_looping(body) for body in bodies) / count,
        empty_share=sum(not body for body in bodies) / count,
        mean_tokens=sum(len(answer.response) for answer in answers) / count,
        kl_per_token=kl_per_token,
    )


def is_looping(tokens: Sequence[int]) -> bool:
    """Whether one phrase, repeated at least three times in a row, makes up half of the answer or more."""
    for period in range(1, min(_LOOP_MAX_PERIOD, len(tokens) // _LOOP_MIN_REPEATS) + 1):
        longest = run = 0
        for earlier, later in zip(tokens, tokens[period:], strict=False):
            run = run + 1 if earlier == later else 0
            longest = max(longest, run)
        covered = longest + period
        if (
            covered >= _LOOP_MIN_REPEATS * period
            and covered >= _LOOP_MIN_SHARE * len(tokens)
            and covered >= 6
        ):
            return True
    return False


@torch.no_grad()
def kl_per_token(
    scorer: ResponseScorer,
    answers: Sequence[TokenSequence],
    as_base: Callable[[], AbstractContextManager[None]],
) -> float:
    """Monte-Carlo estimate of KL(version ‖ base) per sampled token, in nats.

    Σ log(p/q) over the tokens that the version itself sampled, divided by their number; both at the
    sampling temperature, so the estimate is unbiased for the distribution people see. It may come out
    slightly below 0. `as_base` is a context in which the scorer's model answers as base.
    """
    device = next(scorer.model.parameters()).device
    total, count = 0.0, 0
    for start in range(0, len(answers), _ROWS_AT_ONCE):
        batch = pad_sequences(answers[start : start + _ROWS_AT_ONCE], device)
        version = scorer.token_logps(batch, temperature=TEMPERATURE)
        with as_base():
            base = scorer.token_logps(batch, temperature=TEMPERATURE)
        total += float((version - base).sum())
        count += len(batch.targets)
    return total / count


def _generate(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    eos_ids: Collection[int],
    max_tokens: int,
    should_stop: Callable[[], bool],
) -> list[TokenSequence]:
    device = next(model.parameters()).device
    width = max(map(len, prompts))
    pad = min(eos_ids)
    ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device
    )

    def stop(input_ids: Tensor, _scores: Tensor) -> Tensor:
        return torch.full((len(input_ids),), should_stop(), device=input_ids.device)

    # Everything is said outright: what is not would come from the model's own generation_config.
    output: Tensor = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_new_tokens=0,
        max_new_tokens=max_tokens,
        eos_token_id=sorted(eos_ids),
        pad_token_id=pad,
        stopping_criteria=StoppingCriteriaList([stop]),
    )
    return [
        TokenSequence(prompt, _until_eos(row, eos_ids))
        for prompt, row in zip(prompts, output[:, width:].tolist(), strict=True)
    ]


def _until_eos(tokens: list[int], eos_ids: Collection[int]) -> tuple[int, ...]:
    """The tokens up to and including the first EOS; what follows is padding."""
    for position, token in enumerate(tokens):
        if token in eos_ids:
            return tuple(tokens[: position + 1])
    return tuple(tokens)
