"""Whole rankings: exact in every layout and split, Plackett–Luce as written, DPO where there are two."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.batches import Batch, Segment, SegmentTable, TokenPair, response_lengths
from dpo_studio.dpo.evaluate import evaluate, score_pairs
from dpo_studio.dpo.layouts import LADDER, PACKED, PADDED, PREFIX_SHARED, Layout, pair_logps
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.packing import share_prefixes
from dpo_studio.dpo.self_check import choose_layout
from dpo_studio.dpo.trainer import StepResult, Trainer
from tests.dpo.models import CPU, adapter_state, load_tiny, random_pairs, random_rankings, with_lora
from tests.dpo.test_trainer import textbook_logp
from tests.models import ARCHITECTURES

SETTINGS = TrainSettings(loss="plackett_luce", beta=0.3, epochs=1, batch_size=8, warmup_ratio=0.0)

# Four, three and two responses. The first prompt and some responses exceed the tiny models' windows (8).
RANKINGS = random_rankings([(20, 12, 3, 1, 17), (3, 6, 4, 9), (5, 2, 7), (4, 1, 3, 2, 2)])


def reference_of(model: Any, pairs: Sequence[TokenPair], **options: Any) -> torch.Tensor:
    with model.disable_adapter():
        return score_pairs(ResponseScorer(model), pairs, MemoryBudget(), **options)


def train(
    model: Any, pairs: Sequence[TokenPair], settings: TrainSettings = SETTINGS, **options: Any
) -> list[StepResult]:
    reference = reference_of(model, pairs)
    return list(Trainer(ResponseScorer(model), pairs, reference, settings, **options).steps())


def parameters_of(model: Any) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
def test_one_step_equals_the_textbook(tmp_path: Path, layout: Layout) -> None:
    """Three, four and two responses, log-probabilities from the stock forward of one sequence at a time.

    Per place k: −log of the softmax share of response k among those not yet placed.
    """
    model = with_lora(load_tiny(tmp_path), is_perturbed=True)
    pairs = RANKINGS[:3]
    losses = []
    for pair in pairs:
        rewards = []
        for response in pair.responses:
            policy = textbook_logp(model, pair.prompt, response)
            with model.disable_adapter(), torch.no_grad():
                reference = textbook_logp(model, pair.prompt, response)
            rewards.append(0.3 * (policy - reference))
        weights = [reward.exp() for reward in rewards]
        places = range(len(weights) - 1)
        losses.append(-sum(torch.log(weights[k] / torch.stack(weights[k:]).sum()) for k in places))
    loss = torch.stack(losses).mean()  # type: ignore[arg-type]
    slopes = torch.autograd.grad(loss, parameters_of(model))
    norm = torch.cat([slope.flatten() for slope in slopes]).norm()
    settings = dataclasses.replace(SETTINGS, max_grad_norm=1e9)
    (step,) = train(model, pairs, settings, layout=layout, budget=MemoryBudget(40))
    assert step.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert step.metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_with_two_responses_loss_gradients_and_adapter_are_those_of_dpo(tmp_path: Path, beta: float) -> None:
    pairs = random_pairs([(5, 4, 9), (3, 12, 2), (8, 6, 6), (4, 1, 7)])
    models = [with_lora(load_tiny(tmp_path / name), is_perturbed=True) for name in ("dpo", "ranked")]
    runs = []
    for model, loss in zip(models, ("sigmoid", "plackett_luce"), strict=True):
        settings = TrainSettings(loss=loss, beta=beta, epochs=2, batch_size=3, learning_rate=1e-3)  # type: ignore[arg-type]
        runs.append(train(model, pairs, settings))
        # The gradients of the last step are still there.
        assert all(parameter.grad is not None for parameter in parameters_of(model))
    for dpo, ranked in zip(*runs, strict=True):
        assert ranked.metrics == pytest.approx(dpo.metrics, abs=1e-6)
    for one, other in zip(*(parameters_of(model) for model in models), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=0)
    states = [adapter_state(model) for model in models]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_layouts_agree_with_stock_padded_attention(tmp_path: Path, architecture: str) -> None:
    model = with_lora(load_tiny(tmp_path, architecture), is_perturbed=True)
    scorer = ResponseScorer(model)
    lengths = response_lengths(RANKINGS)
    weights = torch.linspace(-1, 1, lengths.numel(), dtype=torch.float64).view_as(lengths)

    def measured(layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
        logps = pair_logps(scorer, RANKINGS, layout)
        slopes = torch.autograd.grad((logps * weights).sum(), parameters_of(model))
        return logps, torch.cat([slope.flatten() for slope in slopes])

    expected, slope = measured(PADDED)
    assert bool((expected[lengths == 0] == 0).all()) and bool((expected[lengths > 0] != 0).all())
    for layout in (PACKED, PREFIX_SHARED):
        found, found_slope = measured(layout)
        assert ((found - expected).abs() / lengths.clamp(min=1)).max() <= 1e-5, layout.name
        assert (found_slope - slope).norm() <= 1e-4 * slope.norm(), layout.name


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
def test_a_changed_response_changes_only_its_own_score(tmp_path: Path, layout: Layout) -> None:
    scorer = ResponseScorer(load_tiny(tmp_path))
    first = RANKINGS[0]
    changed = dataclasses.replace(first, between=(first.between[0], (9,)))
    with torch.no_grad():
        before, after = (pair_logps(scorer, [one, *RANKINGS[1:]], layout) for one in (first, changed))
    assert ((before - after).abs() > 1e-4).nonzero().tolist() == [[0, 2]]


@pytest.mark.parametrize("max_tokens", [1, 60, 200])
def test_any_split_into_micro_batches_is_the_same_step(tmp_path: Path, max_tokens: int) -> None:
    """Groups of rankings and of pairs alone have fewer columns than all together."""
    whole, split = (with_lora(load_tiny(tmp_path / str(i)), is_perturbed=True) for i in range(2))
    (one,) = train(whole, RANKINGS, budget=MemoryBudget(10_000))
    (other,) = train(split, RANKINGS, budget=MemoryBudget(max_tokens))
    assert one.metrics == pytest.approx(other.metrics, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
def test_the_processed_tokens_are_those_announced(layout: Layout) -> None:
    sizes = [layout.size(pair) for pair in RANKINGS]
    for group in layout.plan(sizes, 120):
        batch = layout.lay_out([RANKINGS[index] for index in group], CPU)
        assert batch.input_ids.numel() == layout.num_tokens([sizes[index] for index in group])


def test_no_token_is_processed_that_is_not_there() -> None:
    processed = PREFIX_SHARED.num_tokens([PREFIX_SHARED.size(pair) for pair in RANKINGS])
    assert processed == sum(len(pair.prompt) + sum(map(len, pair.responses)) for pair in RANKINGS)


def test_a_tail_weight_counts_what_a_response_has_beyond_the_shortest(tmp_path: Path) -> None:
    scorer = ResponseScorer(load_tiny(tmp_path))
    pair = random_rankings([(4, 6, 3, 5)])[0]
    cut = TokenPair(pair.prompt, pair.chosen[:3], pair.rejected[:3], between=(pair.between[0],))
    with torch.no_grad():
        found = pair_logps(scorer, [pair], PREFIX_SHARED, tail_weight=0.0)
        torch.testing.assert_close(found, pair_logps(scorer, [cut], PREFIX_SHARED), atol=1e-4, rtol=0)


def test_a_ranking_is_learnt_and_the_reverse_teaches_the_opposite(tmp_path: Path) -> None:
    """The negative control: trained from worst to best, the true order has a higher loss than before."""
    rankings = random_rankings([(6, 5, 4, 7, 5), (4, 3, 6, 5), (5, 4, 5)], seed=3)
    turned = [TokenPair(p.prompt, p.rejected, p.chosen, between=p.between[::-1]) for p in rankings]
    settings = dataclasses.replace(SETTINGS, epochs=15, batch_size=2, learning_rate=1e-2)
    found = []
    for name, taught in (("right", rankings), ("wrong", turned)):
        model = with_lora(load_tiny(tmp_path / name))
        train(model, taught, settings)
        policy = score_pairs(ResponseScorer(model), rankings, MemoryBudget())
        found.append(evaluate(policy, reference_of(model, rankings), rankings, settings))
    nothing = torch.zeros(3, 4, dtype=torch.float64)
    untrained = evaluate(nothing, nothing, rankings, settings)
    right, wrong = found
    # log 4!, log 3!, log 2!: every order is as likely.
    assert untrained["loss"] == pytest.approx(torch.tensor([24.0, 6.0, 2.0]).log().mean().item())
    assert right["loss"] < 0.5 * untrained["loss"] < 2 * untrained["loss"] < wrong["loss"]
    assert (right["rewards/accuracies"], wrong["rewards/accuracies"]) == (1.0, 0.0)


class CutOffBetween:
    """Prefix-shared, but the third response of a ranking does not see its prompt."""

    name = "planted"
    size, plan, num_tokens = PREFIX_SHARED.size, PREFIX_SHARED.plan, PREFIX_SHARED.num_tokens

    def lay_out(self, pairs: Sequence[TokenPair], device: torch.device) -> Batch:
        batch = share_prefixes(pairs, device)
        assert batch.segments is not None
        segments = list(batch.segments.segments)
        first = 0
        for pair in pairs:
            if pair.between:
                segments[first + 3] = Segment(segments[first + 3].start, segments[first + 3].length)
            first += 1 + len(pair.responses)
        return dataclasses.replace(batch, segments=SegmentTable(tuple(segments)))


def test_the_self_check_looks_at_a_ranking_although_pairs_are_longer_and_shorter(tmp_path: Path) -> None:
    model = with_lora(load_tiny(tmp_path))
    pairs = [*random_pairs([(20, 30, 12), (1, 1, 2)]), *random_rankings([(6, 5, 4, 7, 5)])]
    assert choose_layout(model, pairs).layout is PREFIX_SHARED
    choice = choose_layout(model, pairs, (CutOffBetween(), PACKED, PADDED))
    assert choice.layout is PACKED
    assert "planted layout was not used" in choice.reasons[0] and "differ" in choice.reasons[0]
    assert choose_layout(model, pairs[:2], (CutOffBetween(), PADDED)).layout is not PADDED


def test_the_self_check_holds_no_ranking_beside_the_longest_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row for all was more than the memory that training is planned for: the cheap layouts were refused
    for want of memory, or the process was ended.
    """
    laid_out = []
    right = ResponseScorer.token_logps

    def counted(scorer: ResponseScorer, batch: Batch, **options: Any) -> torch.Tensor:
        laid_out.append(batch.input_ids.numel())
        return right(scorer, batch, **options)

    monkeypatch.setattr(ResponseScorer, "token_logps", counted)
    pairs = [*random_pairs([(2, 40, 40), (1, 1, 2)]), *random_rankings([(6, *[14] * 5)])]
    assert choose_layout(with_lora(load_tiny(tmp_path)), pairs).layout is PREFIX_SHARED
    # 84 and 100 tokens padded, 86 and 76 in rows of shared prefixes.
    assert max(laid_out) == 5 * 20


def test_the_self_check_takes_sixteen_responses_in_bf16(tmp_path: Path) -> None:
    model = with_lora(load_tiny(tmp_path).bfloat16())
    assert choose_layout(model, random_rankings([(8, *range(3, 19))])).layout is PREFIX_SHARED
