"""Scores equal the model's own log-softmax, one sequence at a time, on every architecture we serve."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.dpo.batches import TokenSequence, pad_sequences
from dpo_studio.dpo.logps import ResponseScorer
from tests.dpo.models import CPU, load_tiny, random_pairs, with_lora
from tests.models import ARCHITECTURES

# Longer than the sliding windows of the tiny models (8), and of unequal lengths.
SEQUENCES = [
    sequence for pair in random_pairs([(3, 1, 4), (20, 30, 12), (11, 7, 2)]) for sequence in pair.sequences
]


def alone(model: Any, sequence: TokenSequence, temperature: float = 1.0) -> torch.Tensor:
    """(response tokens,): log-probabilities by the textbook, from full logits of one unpadded row."""
    ids = torch.tensor([sequence.prompt + sequence.response])
    with torch.no_grad():
        logps = (model(input_ids=ids).logits[0].float() / temperature).log_softmax(-1)
    found: torch.Tensor = logps[:-1].gather(1, ids[0, 1:, None]).squeeze(1)
    return found[-len(sequence.response) :]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_tiny(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_scores_equal_one_sequence_at_a_time(tmp_path: Path, architecture: str) -> None:
    model = load_tiny(tmp_path, architecture)
    expected = torch.cat([alone(model, sequence) for sequence in SEQUENCES])
    with torch.no_grad():
        found = ResponseScorer(model).token_logps(pad_sequences(SEQUENCES, CPU))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_a_model_that_caps_its_logits_is_scored_with_its_cap(tmp_path: Path) -> None:
    model = load_tiny(tmp_path, "gemma2", final_logit_softcapping=1.5)
    batch = pad_sequences(SEQUENCES, CPU)
    expected = torch.cat([alone(model, sequence) for sequence in SEQUENCES])
    with torch.no_grad():
        found = ResponseScorer(model).token_logps(batch)
        model.config.final_logit_softcapping = None
        uncapped = ResponseScorer(model).token_logps(batch)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
    assert (found - uncapped).abs().max() > 0.01, "the cap must matter, or this test shows nothing"


def test_chunks_of_the_head_change_neither_scores_nor_gradients(tmp_path: Path) -> None:
    model = with_lora(load_tiny(tmp_path), is_perturbed=True)
    batch = pad_sequences(SEQUENCES, CPU)
    parameters = [p for p in model.parameters() if p.requires_grad]
    results = []
    for chunk_tokens in (None, 5):
        logps = ResponseScorer(model, chunk_tokens=chunk_tokens).token_logps(batch)
        results.append((logps.detach(), torch.autograd.grad(logps.sum(), parameters)))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_trained", [False, True])
def test_the_head_never_sees_prompt_or_padding(tmp_path: Path, is_trained: bool) -> None:
    """A frozen head is multiplied with the response positions directly, so its module sees nothing at all."""
    model = load_tiny(tmp_path)
    model.get_output_embeddings().requires_grad_(is_trained)
    seen: list[int] = []
    batch = pad_sequences(SEQUENCES, CPU)
    scorer = ResponseScorer(model)
    scorer.token_logps(batch)
    model.get_output_embeddings().register_forward_hook(
        lambda _module, inputs, _output: seen.append(inputs[0].numel() // inputs[0].shape[-1])
    )
    scorer.token_logps(batch)
    assert sum(seen) == is_trained * sum(len(sequence.response) for sequence in SEQUENCES)


def test_padding_content_changes_nothing(llama: Any) -> None:
    batch = pad_sequences(SEQUENCES, CPU)
    scorer = ResponseScorer(llama)
    before = scorer.token_logps(batch)
    for row, sequence in enumerate(SEQUENCES):
        batch.input_ids[row, len(sequence) :] = 77
    torch.testing.assert_close(scorer.token_logps(batch), before, atol=0, rtol=0)


def test_a_changed_response_changes_only_its_own_score(llama: Any) -> None:
    changed = [*SEQUENCES]
    changed[3] = TokenSequence(changed[3].prompt, (9, *changed[3].response[1:]))
    scorer = ResponseScorer(llama)
    before = scorer.sequence_logps(pad_sequences(SEQUENCES, CPU))
    after = scorer.sequence_logps(pad_sequences(changed, CPU))
    assert (after != before).nonzero().flatten().tolist() == [3]


def test_sequence_scores_are_sums_and_not_means(llama: Any) -> None:
    expected = torch.stack([alone(llama, sequence).double().sum() for sequence in SEQUENCES])
    found = ResponseScorer(llama).sequence_logps(pad_sequences(SEQUENCES, CPU))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_temperature_scores_the_sharpened_distribution(llama: Any) -> None:
    expected = torch.cat([alone(llama, sequence, temperature=0.5) for sequence in SEQUENCES])
    found = ResponseScorer(llama).token_logps(pad_sequences(SEQUENCES, CPU), temperature=0.5)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


def test_dropout_is_off_also_where_it_is_not_a_module(tmp_path: Path) -> None:
    model = with_lora(load_tiny(tmp_path, attention_dropout=0.5), dropout=0.5, is_perturbed=True).train()
    batch = pad_sequences(SEQUENCES, CPU)
    noisy = [model(input_ids=batch.input_ids).logits for _ in range(2)]
    assert not torch.equal(noisy[0], noisy[1]), "dropout must be on before, or this test shows nothing"
    scorer = ResponseScorer(model)
    assert torch.equal(scorer.token_logps(batch), scorer.token_logps(batch))


def test_the_model_answers_as_before_after_scoring(llama: Any) -> None:
    ids = torch.tensor([SEQUENCES[2].prompt])
    before = llama(input_ids=ids).logits
    ResponseScorer(llama).token_logps(pad_sequences(SEQUENCES, CPU))
    assert torch.equal(llama(input_ids=ids).logits, before)
