"""The recipe's parts: weights of the loss, the schedule, Muon's step."""

from __future__ import annotations

import math
import random
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from dpo_studio.starter import model_dir, second_turns
from dpo_studio.starter.batches import POINT_HEAT, POINT_TOKENS, POINT_WEIGHT, TURN_WEIGHT, Encoder, batches
from dpo_studio.starter.corpus import Conversation, Corpus
from dpo_studio.starter.fast_loss import _CrossEntropy, weighted_loss
from dpo_studio.starter.muon import Muon, orthogonalise
from dpo_studio.starter.style import draw_style
from dpo_studio.starter.tokenizer import ASSISTANT, load_tokenizer
from dpo_studio.starter.train import Plan, Progress, rate_scale


def _plan(minutes: float, decay: float) -> Plan:
    return Plan(Path("w"), Path("o"), minutes, decay, 1, 512, 0.02, 0.004, 60.0, False)


def test_only_the_assistant_counts_and_most_where_a_point_begins() -> None:
    tokenizer = load_tokenizer(model_dir())
    encoder = Encoder(tokenizer, {"other": [], "smalltalk/hello": ["it is good to hear from you"]})
    turns = (("user", "Hello THERE"), ("assistant", "Hi, it is good to hear from you."))
    conversation = Conversation(turns, ("smalltalk/hello",), ("",), "smalltalk", draw_style(random.Random(1)))
    ids, weights, heats, subjects = encoder.encode([conversation])[0]
    begin = subjects.index(1)
    assert set(weights[: begin + 1]) == {0.0}
    heavy = [at for at, weight in enumerate(weights) if weight == POINT_WEIGHT]
    assert heavy == list(range(heavy[0], heavy[0] + POINT_TOKENS))
    assert tokenizer.decode(ids[heavy[0] : heavy[-1] + 1]) == " it is good"
    steep = [at for at, heat in enumerate(heats) if heat == POINT_HEAT]
    assert tokenizer.decode([ids[at] for at in steep]) == " it is good to hear from you"
    assert set(heats) == {1.0, POINT_HEAT}
    assert subjects == [-1] * begin + [1] * (len(ids) - begin)


def test_where_a_second_answer_begins_the_reader_names_what_was_asked_for() -> None:
    """Taught by the answers alone, four forms in ten were not those that were asked for."""
    tokenizer = load_tokenizer(model_dir())
    turns = (("user", "eggs"), ("assistant", "Boil eggs."), ("user", "shorter"), ("assistant", "Boil."))
    conversation = Conversation(
        turns, ("egg", "egg"), ("", "kind:shorter"), "food", draw_style(random.Random(1))
    )
    encoder = Encoder(tokenizer, {"egg": [], "kind:shorter": []})
    ids, _, _, subjects = encoder.encode([conversation])[0]
    marks = [at for at, token in enumerate(ids) if token == tokenizer.convert_tokens_to_ids(ASSISTANT)]
    assert [subjects[at] for at in marks] == [0, 1]
    assert all(subject in (-1, 0) for at, subject in enumerate(subjects) if at != marks[1])


def test_reading_lessons_hold_second_turns_of_every_kind() -> None:
    seen = {item.kinds for item in islice(Corpus().questions(seed=3), 2000)}
    assert {kinds[1] for kinds in seen if len(kinds) == 2} == {f"kind:{kind}" for kind in second_turns.KINDS}
    assert ("",) in seen


def test_more_weight_where_a_sentence_ends_and_the_next_is_chosen() -> None:
    tokenizer = load_tokenizer(model_dir())
    turns = (
        ("user", "eggs"),
        ("assistant", "Sure. A few things:\n- Boil eggs\n- Fry eggs\nDo you like eggs?"),
    )
    conversation = Conversation(turns, ("other",), ("",), "food", draw_style(random.Random(1)))
    ids, weights, *_ = Encoder(tokenizer, {"other": []}).encode([conversation])[0]
    chosen = [
        tokenizer.decode([ids[at]]).strip() for at, weight in enumerate(weights) if weight == TURN_WEIGHT
    ]
    assert chosen == ["A", "", "", "", "<|end|>"]


def test_batches_are_deterministic_and_padded_with_weight_zero() -> None:
    encoder = Encoder(load_tokenizer(model_dir()), Corpus().contents())
    first, second = (list(islice(batches(Corpus().conversations(5), encoder, 5, 1024), 3)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert a.ids.shape == a.weights.shape
        assert a.ids.numel() <= 1024 or a.ids.size(0) == 1
        assert bool((a.weights[a.ids == 0] == 0).all())


def test_the_fast_loss_is_that_of_transformers() -> None:
    model = LlamaForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    corpus = Corpus()
    encoder = Encoder(load_tokenizer(model_dir()), corpus.contents())
    batch = next(batches(corpus.conversations(5), encoder, 5, 512))
    with torch.no_grad():
        ours, _ = weighted_loss(model, batch)
        logits = model(input_ids=batch.ids).logits[:, :-1]
        logits *= batch.heats[:, 1:].unsqueeze(-1)
        losses = functional.cross_entropy(logits.flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    theirs = (losses * weights).sum() / weights.sum()
    assert float(ours) == pytest.approx(float(theirs), rel=0.02)  # ours computes in bfloat16


def test_the_fused_gradient_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    hidden, table = torch.randn(5, 8), torch.randn(11, 8)
    targets, share = torch.randint(11, (5,)), torch.rand(5)
    heat = torch.tensor([1.0, 0.5, 1.0, 0.5, 0.25])
    grads = []
    for compute in (_CrossEntropy.apply, _plain_cross_entropy):
        a, b = (tensor.bfloat16().requires_grad_() for tensor in (hidden, table))
        compute(a, b, targets, share, heat).backward()
        grads.append((a.grad, b.grad))
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.03, atol=0.02)  # bfloat16 keeps eight bits


def _plain_cross_entropy(
    hidden: Tensor, table: Tensor, targets: Tensor, share: Tensor, heat: Tensor
) -> Tensor:
    logits = (hidden @ table.T).float() * heat.unsqueeze(1)
    return (functional.cross_entropy(logits, targets, reduction="none") * share).sum()


def test_the_reader_counts_only_where_an_answer_stands() -> None:
    model = LlamaForCausalLM.from_pretrained(model_dir(), dtype=torch.float32)
    corpus = Corpus()
    encoder = Encoder(load_tokenizer(model_dir()), corpus.contents())
    batch = next(batches(corpus.conversations(5), encoder, 5, 512))
    reader = torch.nn.Linear(model.config.hidden_size, len(corpus.contents()))
    torch.nn.init.zeros_(reader.weight)
    torch.nn.init.zeros_(reader.bias)
    _, reading = weighted_loss(model, batch, reader=reader)
    assert float(reading.detach()) == pytest.approx(math.log(len(corpus.contents())), rel=1e-4)


@pytest.mark.parametrize(("spent", "expected"), [(30.0, 1.0), (45.0, 0.5), (60.0, 0.0)])
def test_rates_fall_to_zero_by_the_clock(spent: float, expected: float) -> None:
    assert rate_scale(Progress(step=500, spent_s=spent), _plan(1.0, 0.5)) == pytest.approx(expected)


def test_rates_warm_up() -> None:
    assert rate_scale(Progress(step=9), _plan(1.0, 0.5)) == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(2, 8, 24), (3, 24, 8)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
    assert values.min() > 0.5 and values.max() < 1.5


def test_muon_steps_down_a_slope() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 8))
    optimizer = Muon([weight], lr=0.05)
    before = float(weight.detach().square().sum())
    for _ in range(20):
        weight.square().sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert float(weight.detach().square().sum()) < before
