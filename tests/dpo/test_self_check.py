"""The self-check: passes what is exact, catches what is not, and leaves no trace in the model."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_studio.dpo.batches import Batch, Segment, SegmentTable, TokenPair
from dpo_studio.dpo.layouts import LADDER, PACKED, PADDED, PREFIX_SHARED
from dpo_studio.dpo.packing import share_prefixes
from dpo_studio.dpo.self_check import choose_layout
from tests.dpo.models import adapter_state, load_tiny, random_pairs, with_lora
from tests.models import ARCHITECTURES, VOCABULARY

PAIRS = random_pairs([(6, 9, 9), (20, 30, 12), (3, 1, 4)])


class Planted:
    """A prefix-shared layout with a mistake."""

    name = "planted"
    size, plan, num_tokens = PREFIX_SHARED.size, PREFIX_SHARED.plan, PREFIX_SHARED.num_tokens

    def lay_out(self, pairs: Sequence[TokenPair], device: torch.device) -> Batch:
        return self.spoil(share_prefixes(pairs, device))

    def spoil(self, batch: Batch) -> Batch:
        raise NotImplementedError


class CutOffPrompt(Planted):
    """Rejected responses do not see their prompt: what transformers' own packing detection does."""

    def spoil(self, batch: Batch) -> Batch:
        assert batch.segments is not None
        segments = [
            Segment(s.start, s.length) if number % 3 == 2 else s
            for number, s in enumerate(batch.segments.segments)
        ]
        return dataclasses.replace(batch, segments=SegmentTable(tuple(segments)))


class LeakingBranch(Planted):
    """Rejected responses also see the last chosen token."""

    def spoil(self, batch: Batch) -> Batch:
        assert batch.segments is not None
        segments = [
            Segment(s.start, s.length, s.prefix_start + 1, s.prefix_length) if number % 3 == 2 else s
            for number, s in enumerate(batch.segments.segments)
        ]
        return dataclasses.replace(batch, segments=SegmentTable(tuple(segments)))


class WrongPositions(Planted):
    """Positions run on over the whole row."""

    def spoil(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, position_ids=torch.arange(batch.input_ids.shape[1])[None])


class ShiftedPrediction(Planted):
    """Every token predicted one position late."""

    def spoil(self, batch: Batch) -> Batch:
        return dataclasses.replace(batch, predict_at=batch.predict_at + 1)


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return with_lora(load_tiny(tmp_path))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_we_serve_gets_the_cheapest_layout(tmp_path: Path, architecture: str) -> None:
    choice = choose_layout(with_lora(load_tiny(tmp_path, architecture)), PAIRS)
    assert choice.layout is PREFIX_SHARED
    assert choice.reasons == ()


@pytest.mark.parametrize("planted", [CutOffPrompt(), LeakingBranch(), WrongPositions(), ShiftedPrediction()])
def test_a_planted_mistake_is_caught_and_the_next_rung_taken(model: Any, planted: Planted) -> None:
    choice = choose_layout(model, PAIRS, (planted, PACKED, PADDED))
    assert choice.layout is PACKED
    (reason,) = choice.reasons
    assert "planted layout was not used" in reason and "differ" in reason


def test_a_wrong_window_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One token more than the architecture's window: visible only because a pair is longer than it."""
    from dpo_studio.dpo import segment_attention

    right = segment_attention.attend_segments

    def wide(*arguments: Any, sliding_window: int | None = None, **options: Any) -> Any:
        return right(*arguments, sliding_window=sliding_window and sliding_window + 1, **options)

    model = with_lora(load_tiny(tmp_path, "mistral"))
    monkeypatch.setattr(segment_attention, "attend_segments", wide)
    assert choose_layout(model, PAIRS).layout is PADDED
    short = random_pairs([(2, 3, 2), (1, 2, 1)])
    assert choose_layout(model, short).layout is PREFIX_SHARED


def test_a_gradient_that_differs_is_caught(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right log-probabilities with a cut gradient must not pass."""
    from dpo_studio.dpo import segment_attention

    right = segment_attention.attend_segments

    def detached(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        return right(module, query, key.detach(), value, *rest, **options)

    monkeypatch.setattr(segment_attention, "attend_segments", detached)
    choice = choose_layout(model, PAIRS)
    assert choice.layout is PADDED
    assert all("gradient differs" in reason for reason in choice.reasons)


def test_linear_attention_falls_back_to_padding() -> None:
    choice = choose_layout(with_lora(linear_attention_model()), PAIRS)
    assert choice.layout is PADDED
    assert "linear_attention" in choice.reasons[0]


def test_linear_attention_would_be_caught_by_its_numbers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from dpo_studio.dpo import self_check

    monkeypatch.setattr(self_check, "_unsupported_layers", lambda _: "")
    choice = choose_layout(with_lora(linear_attention_model()), PAIRS)
    assert choice.layout is PADDED


def linear_attention_model() -> Any:
    config = AutoConfig.for_model(
        "qwen3_5_text",
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        max_position_embeddings=256,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).requires_grad_(False).eval()


def test_bf16_passes_and_a_cut_prompt_does_not(tmp_path: Path) -> None:
    model = with_lora(load_tiny(tmp_path).bfloat16())
    assert choose_layout(model, PAIRS).layout is PREFIX_SHARED
    assert choose_layout(model, PAIRS, (CutOffPrompt(), PADDED)).layout is PADDED


@pytest.mark.parametrize("ladder", [LADDER, (CutOffPrompt(), PADDED)])
def test_the_model_is_left_as_it_was_to_the_bit(model: Any, ladder: Any) -> None:
    model.train()
    before, attention = adapter_state(model), model.config._attn_implementation
    marks = [p for p in model.parameters() if p.requires_grad]
    for parameter in marks:
        parameter.grad = torch.full_like(parameter, 0.25)
    choose_layout(model, PAIRS, ladder)
    after = adapter_state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(bool((p.grad == 0.25).all()) for p in marks if p.grad is not None)
    assert model.training and model.config._attn_implementation == attention


def test_an_error_in_a_layout_is_a_reason_and_not_an_end(model: Any) -> None:
    class Broken(Planted):
        def spoil(self, batch: Batch) -> Batch:
            raise IndexError(f"{batch.lengths} is out of range")

    choice = choose_layout(model, PAIRS, (Broken(), PADDED))
    assert choice.layout is PADDED
    assert "IndexError" in choice.reasons[0]


def test_one_pair_is_enough(model: Any) -> None:
    assert choose_layout(model, PAIRS[:1]).layout is PREFIX_SHARED
