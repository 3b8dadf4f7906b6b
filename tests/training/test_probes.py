"""Probes: what counts as ended, empty, looping; and a drift estimate that knows no drift and some."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.dpo.batches import TokenSequence
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.training.probes import (
    MAX_TOKENS,
    SAMPLES_PER_PROMPT,
    is_looping,
    kl_per_token,
    sample_answers,
    summarise,
)
from tests.dpo.models import load_tiny, with_lora

EOS = 3
PROMPTS = [(10, 11, 12), (13,), (14, 15)]


@pytest.mark.parametrize(
    "tokens",
    [
        [1, 2, 3] * 3,
        [5] * 6,
        [9, 8, 7, 6, *[1, 2, 3, 4] * 4],
        [*[1, 2, 3, 4] * 4, 9, 8, 7, 6],
    ],
)
def test_a_phrase_that_fills_the_answer_is_a_loop(tokens: list[int]) -> None:
    assert is_looping(tokens)


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [5, 5, 5],
        list(range(40)),
        [1, 2, 3, 1, 2, 3, 9, 8, 7],
        [*range(20), *[50, 51] * 3],
        [1, 2, 9, 1, 2, 8, 1, 2, 7, 1, 2, 6],
    ],
)
def test_emphasis_and_ordinary_text_are_none(tokens: list[int]) -> None:
    assert not is_looping(tokens)


def test_shares_are_counted_by_answer() -> None:
    answers = [
        TokenSequence((1,), (5, 6, 7, EOS)),
        TokenSequence((1,), (EOS,)),
        TokenSequence((1,), (5, 6, 7, 8)),
        TokenSequence((1,), (5, 5, 5, 5, 5, 5, EOS)),
    ]
    found = summarise(answers, {EOS}, 0.25)
    assert (found.num_samples, found.ended_share, found.empty_share) == (4, 0.75, 0.25)
    assert (found.looping_share, found.mean_tokens, found.kl_per_token) == (0.25, 4.0, 0.25)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return with_lora(load_tiny(tmp_path_factory.mktemp("probes")), is_perturbed=True).eval()


def test_answers_repeat_with_their_seed_and_differ_between_samples(model: Any) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (sample_answers(model, PROMPTS, eos_ids={EOS}, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert first[0] != first[1], "two samples of one prompt must differ"
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_prompt_is_answered_up_to_its_first_eos_or_the_cap(model: Any) -> None:
    eos = set(range(60))
    answers = sample_answers(model, PROMPTS, eos_ids=eos, seed=0)
    assert [a.prompt for a in answers] == [p for p in PROMPTS for _ in range(SAMPLES_PER_PROMPT)]
    for answer in answers:
        assert not eos & set(answer.response[:-1])
        assert answer.response[-1] in eos or len(answer.response) == MAX_TOKENS


def test_the_models_own_generation_config_does_not_change_sampling(model: Any) -> None:
    before = sample_answers(model, PROMPTS, eos_ids={EOS}, seed=1)
    config = model.get_base_model().generation_config
    config.top_k, config.repetition_penalty, config.min_new_tokens = 1, 5.0, 50
    try:
        assert sample_answers(model, PROMPTS, eos_ids={EOS}, seed=1) == before
    finally:
        config.top_k, config.repetition_penalty, config.min_new_tokens = None, None, None


def test_drift_of_base_from_itself_is_zero(model: Any) -> None:
    answers = sample_answers(model, PROMPTS, eos_ids={EOS}, seed=1)
    assert kl_per_token(ResponseScorer(model), answers, nullcontext) == 0.0


def test_drift_is_the_mean_exact_kl_over_many_samples(model: Any) -> None:
    """The sampled estimate against the KL summed over the vocabulary at the same positions."""
    answers = sample_answers(model, PROMPTS * 8, eos_ids={EOS}, seed=1)
    exact, count = 0.0, 0
    for answer in answers:
        ids = torch.tensor([answer.prompt + answer.response])
        with torch.no_grad():
            version = (model(input_ids=ids).logits[0] / 0.9).log_softmax(-1)
            with model.disable_adapter():
                base = (model(input_ids=ids).logits[0] / 0.9).log_softmax(-1)
        at = slice(len(answer.prompt) - 1, -1)
        exact += float((version.exp() * (version - base))[at].sum())
        count += len(answer.response)
    found = kl_per_token(ResponseScorer(model), answers, model.disable_adapter)
    assert exact / count > 0.05, "the adapter must matter, or this test shows nothing"
    assert found == pytest.approx(exact / count, rel=0.15)


def test_sampling_stops_when_asked(model: Any, tmp_path: Path) -> None:
    assert not tmp_path.joinpath("cancel").exists()
    assert sample_answers(model, PROMPTS, eos_ids={EOS}, seed=0, should_stop=lambda: True) == []
