"""Training: exact steps however they are split, the same bits from the same seed, and it learns."""

import copy
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.dpo.evaluate import evaluate, score_pairs
from dpo_studio.dpo.failures import TrainingCancelled, TrainingFailed
from dpo_studio.dpo.layouts import LADDER, Layout
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.metrics import SUM_NAMES, metrics_of
from dpo_studio.dpo.trainer import StepResult, Trainer, epoch_batches, learning_rate_at
from dpo_studio.dpo.world import World
from tests.dpo.models import adapter_state, load_tiny, random_pairs, random_rankings, with_lora

PAIRS = random_pairs([(5, 4, 9), (3, 12, 2), (8, 6, 6), (4, 1, 7), (6, 3, 5), (2, 8, 8), (9, 5, 4)])


@pytest.fixture
def model(tmp_path: Path) -> Any:
    return with_lora(load_tiny(tmp_path / "model"))


def reference_of(model: Any, pairs: list[TokenPair]) -> torch.Tensor:
    with model.disable_adapter():
        return score_pairs(ResponseScorer(model), pairs, MemoryBudget())


def train(
    model: Any, settings: TrainSettings, pairs: list[TokenPair] | None = None, **options: Any
) -> list[StepResult]:
    pairs = PAIRS if pairs is None else pairs
    reference = options.pop("reference", None)
    reference = reference_of(model, pairs) if reference is None else reference
    return list(Trainer(ResponseScorer(model), pairs, reference, settings, **options).steps())


def one_step(**changes: Any) -> TrainSettings:
    return TrainSettings(**{"epochs": 1, "batch_size": 8, "warmup_ratio": 0.0, **changes})


def test_the_first_loss_is_exactly_ln2_and_every_pair_a_tie(model: Any) -> None:
    (first,) = train(model, one_step())
    assert first.metrics["loss"] == math.log(2)
    assert first.metrics["rewards/accuracies"] == 0.5
    assert first.metrics["rewards/margins"] == 0.0


@pytest.mark.parametrize("layout", LADDER, ids=lambda layout: layout.name)
def test_one_step_equals_the_textbook(tmp_path: Path, layout: Layout) -> None:
    """Gradient norm against autograd through full logits of one unpadded sequence at a time."""
    model = with_lora(load_tiny(tmp_path / "m"), is_perturbed=True)
    settings = one_step(beta=0.3, label_smoothing=0.1, sft_weight=0.2, max_grad_norm=1e9)
    reference = reference_of(model, PAIRS)
    losses = []
    for pair, (ref_chosen, ref_rejected) in zip(PAIRS, reference, strict=True):
        chosen, rejected = (textbook_logp(model, pair.prompt, r) for r in (pair.chosen, pair.rejected))
        x = 0.3 * ((chosen - ref_chosen) - (rejected - ref_rejected))
        dpo = -0.9 * torch.sigmoid(x).log() - 0.1 * torch.sigmoid(-x).log()
        losses.append(dpo - 0.2 * chosen / len(pair.chosen))
    loss = torch.stack(losses).mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).norm()
    (step,) = train(model, settings, reference=reference, layout=layout, budget=MemoryBudget(40))
    assert step.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert step.metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def textbook_logp(model: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    ids = torch.tensor([prompt + response])
    logps: torch.Tensor = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    logps = logps.gather(1, ids[0, 1:, None]).squeeze(1)
    return logps[-len(response) :].double().sum()


@pytest.mark.parametrize("max_tokens", [1, 40, 60])
def test_any_split_into_micro_batches_is_the_same_step(tmp_path: Path, max_tokens: int) -> None:
    whole, split = (with_lora(load_tiny(tmp_path / str(i)), is_perturbed=True) for i in range(2))
    settings = one_step(batch_size=4, learning_rate=1e-2)
    first = train(whole, settings, budget=MemoryBudget(10_000))
    second = train(split, settings, budget=MemoryBudget(max_tokens))
    for a, b in zip(first, second, strict=True):
        assert a.metrics == pytest.approx(b.metrics, rel=1e-4, abs=1e-6)


def test_the_last_shorter_batch_is_the_mean_over_its_own_pairs(model: Any) -> None:
    results = train(model, one_step(batch_size=4, learning_rate=1e-9))
    batches = next(epoch_batches(len(PAIRS), one_step(batch_size=4)))
    assert [len(batch) for batch in batches] == [4, 3]
    logps = reference_of(model, PAIRS)
    expected = logps[batches[1], 0].mean().item()
    assert results[1].metrics["logps/chosen"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("size", "loss"), [(2, "sigmoid"), (3, "sigmoid"), (2, "plackett_luce")])
def test_shares_of_several_processes_add_up_to_one_step(tmp_path: Path, size: int, loss: Any) -> None:
    """Each rank's sums, added by hand, give the whole; 3 ranks leave one without a pair of the last batch.

    One of the ranks may have a ranking of more responses than all the others have.
    """
    settings = one_step(loss=loss, batch_size=5)
    pairs = [*PAIRS, *random_rankings([(5, 4, 3, 6, 2)] * (loss == "plackett_luce"))]
    alone = with_lora(load_tiny(tmp_path / "alone"), is_perturbed=True)
    expected = train(alone, settings, pairs)[0].metrics
    parts: list[torch.Tensor] = []
    for rank in range(size):
        model = with_lora(load_tiny(tmp_path / str(rank)), is_perturbed=True)
        reference = reference_of(model, pairs)
        sums: list[torch.Tensor] = []

        def record(tensor: torch.Tensor, sums: list[torch.Tensor] = sums) -> torch.Tensor:
            sums.append(tensor.clone())
            return tensor

        world = World(rank, size, record)
        next(Trainer(ResponseScorer(model), pairs, reference, settings, world=world).steps())
        # In order: the agreement to go on, the gradients, the metrics.
        assert len(sums) == 3
        parts.append(torch.cat([sums[1].double(), sums[2]]))
    total = torch.stack(parts).sum(0)
    names = ("loss", *SUM_NAMES)
    metrics = metrics_of(dict(zip(names, total[-len(names) :].tolist(), strict=True)), 5)
    assert metrics == pytest.approx({name: expected[name] for name in metrics}, rel=1e-4, abs=1e-6)
    assert total[: -len(names)].norm().item() == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    states = []
    for run in ("a", "b", "c"):
        model = with_lora(load_tiny(tmp_path / run))
        train(model, TrainSettings(epochs=3, batch_size=3, learning_rate=1e-2, seed=int(run == "c")))
        states.append(adapter_state(model))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 7, 9])
def test_a_trainer_goes_on_where_another_stopped_to_the_same_bits(tmp_path: Path, taken: int) -> None:
    """3 epochs of 3 batches, left at the start, in an epoch, at an epoch's end and after the last step."""
    settings = TrainSettings(epochs=3, batch_size=3, learning_rate=1e-2)
    whole = with_lora(load_tiny(tmp_path / "whole"))
    expected = train(whole, settings)
    first = with_lora(load_tiny(tmp_path / "first"))
    reference = reference_of(first, PAIRS)
    trainer = Trainer(ResponseScorer(first), PAIRS, reference, settings)
    before = list(itertools.islice(trainer.steps(), taken))
    state = copy.deepcopy(trainer.state_dict())
    second = with_lora(load_tiny(tmp_path / "second"), seed=9)
    trainer = Trainer(ResponseScorer(second), PAIRS, reference, settings)
    trainer.load_state_dict(state)
    assert [*before, *trainer.steps()] == expected
    wanted = adapter_state(whole)
    assert all(torch.equal(wanted[name], value) for name, value in adapter_state(second).items())


@pytest.mark.parametrize("kind", ["exp_avg", "exp_avg_sq", "step", "parameter"])
def test_every_part_of_the_state_matters(tmp_path: Path, kind: str) -> None:
    """The negative control: without one part, going on ends elsewhere."""
    settings = TrainSettings(epochs=3, batch_size=3, learning_rate=1e-2)
    ends = []
    for broken in (False, True):
        model = with_lora(load_tiny(tmp_path / str(broken)))
        reference = reference_of(model, PAIRS)
        trainer = Trainer(ResponseScorer(model), PAIRS, reference, settings)
        list(itertools.islice(trainer.steps(), 4))
        state = copy.deepcopy(trainer.state_dict())
        if broken:
            state |= {name: torch.zeros_like(v) for name, v in state.items() if name.startswith(f"{kind}/")}
        trainer = Trainer(ResponseScorer(model), PAIRS, reference, settings)
        trainer.load_state_dict(state)
        list(itertools.islice(trainer.steps(), 1))
        ends.append(adapter_state(model))
    assert not all(torch.equal(ends[0][name], value) for name, value in ends[1].items())


def test_only_the_adapter_changes(model: Any) -> None:
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    before = adapter_state(model)
    train(model, one_step(learning_rate=1e-2))
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    assert any(not torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_it_learns_eight_pairs_by_heart(tmp_path: Path, loss: Any) -> None:
    pairs = random_pairs([(6, 5 + n % 3, 7 - n % 4) for n in range(8)], seed=3)
    model = with_lora(load_tiny(tmp_path))
    reference = reference_of(model, pairs)
    settings = TrainSettings(loss=loss, epochs=12, batch_size=4, learning_rate=1e-2)
    train(model, settings, pairs, reference=reference)
    found = evaluate(score_pairs(ResponseScorer(model), pairs, MemoryBudget()), reference, pairs, settings)
    assert found["rewards/accuracies"] == 1.0
    assert found["loss"] < 0.5 * (math.log(2) if loss == "sigmoid" else 25)


def test_swapped_labels_teach_the_opposite(tmp_path: Path) -> None:
    swapped = [TokenPair(p.prompt, p.rejected, p.chosen) for p in PAIRS]
    model = with_lora(load_tiny(tmp_path))
    reference = reference_of(model, PAIRS)
    train(model, TrainSettings(epochs=8, batch_size=4, learning_rate=1e-2), swapped)
    found = evaluate(
        score_pairs(ResponseScorer(model), PAIRS, MemoryBudget()), reference, PAIRS, TrainSettings()
    )
    assert found["rewards/accuracies"] == 0.0


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge", "robust"])
def test_a_soft_label_is_the_step_of_its_votes_one_by_one(tmp_path: Path, loss: Any) -> None:
    """Three copies of a pair and a turned one, of which the loss is the mean: votes 3:1."""
    pair = PAIRS[0]
    turned = TokenPair(pair.prompt, pair.rejected, pair.chosen)
    model = with_lora(load_tiny(tmp_path / "m"), is_perturbed=True)
    smoothing = 0.1 if loss == "robust" else 0.0
    settings = one_step(loss=loss, label_smoothing=smoothing, learning_rate=1e-12, max_grad_norm=1e9)
    (votes,) = train(model, settings, [pair, pair, pair, turned])
    (soft,) = train(model, settings, [dataclasses.replace(pair, chosen_probability=0.75)])
    (hard,) = train(model, settings, [pair])
    assert soft.metrics["loss"] == pytest.approx(votes.metrics["loss"], rel=1e-6)
    assert soft.metrics["grad_norm"] == pytest.approx(votes.metrics["grad_norm"], rel=1e-3)
    assert soft.metrics["grad_norm"] != pytest.approx(hard.metrics["grad_norm"], rel=1e-2)


def test_held_out_loss_knows_soft_labels() -> None:
    pairs = [dataclasses.replace(PAIRS[0], chosen_probability=0.75)]
    policy, reference = torch.tensor([[10.0, 0.0]]).double(), torch.zeros(1, 2).double()
    found = evaluate(policy, reference, pairs, TrainSettings(beta=0.1))
    assert found["loss"] == pytest.approx(0.3132616875182228 + 0.25)


def test_metrics_follow_from_the_scores(tmp_path: Path) -> None:
    model = with_lora(load_tiny(tmp_path), is_perturbed=True)
    reference = reference_of(model, PAIRS)
    policy = score_pairs(ResponseScorer(model), PAIRS, MemoryBudget())
    (step,) = train(model, one_step(beta=0.5), reference=reference)
    rewards = 0.5 * (policy - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    expected = {
        "rewards/chosen": rewards[:, 0].mean().item(),
        "rewards/rejected": rewards[:, 1].mean().item(),
        "rewards/margins": margin.mean().item(),
        "rewards/accuracies": (margin > 0).double().mean().item(),
        "logps/chosen": policy[:, 0].mean().item(),
        "logps/rejected": policy[:, 1].mean().item(),
        "loss": -torch.nn.functional.logsigmoid(margin).mean().item(),
    }
    assert {name: step.metrics[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_loss_that_breaks_ends_training_with_a_sentence(model: Any) -> None:
    with pytest.raises(TrainingFailed, match=r"stopped being a finite number at step \d+ of 20"):
        model.get_base_model().get_input_embeddings().weight[:] = math.nan
        train(model, TrainSettings(epochs=20), reference=torch.zeros(len(PAIRS), 2, dtype=torch.float64))


def test_it_stops_within_one_step(model: Any) -> None:
    taken: list[StepResult] = []
    reference = reference_of(model, PAIRS)
    trainer = Trainer(
        ResponseScorer(model), PAIRS, reference, TrainSettings(), should_stop=lambda: len(taken) == 2
    )
    with pytest.raises(TrainingCancelled):
        for step in trainer.steps():
            taken.append(step)
    assert len(taken) == 2


def test_no_pairs_is_a_sentence(model: Any) -> None:
    with pytest.raises(TrainingFailed, match="at least one pair"):
        train(model, one_step(), [])


def test_epochs_see_every_pair_once_in_a_new_order() -> None:
    first, second = list(epoch_batches(10, TrainSettings(epochs=2, batch_size=4)))
    for epoch in (first, second):
        assert sorted(index for batch in epoch for index in batch) == list(range(10))
        assert [len(batch) for batch in epoch] == [4, 4, 2]
    assert first != second


def test_the_learning_rate_warms_up_in_a_line_and_falls_in_a_half_cosine() -> None:
    settings = TrainSettings(learning_rate=1.0, warmup_ratio=0.2)
    rates = [learning_rate_at(step, 10, settings) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    # 8 steps of decay: after half of them, half of the rate.
    assert rates[6] == pytest.approx(0.5)
    assert 0 < rates[9] == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 8)))


def test_a_training_of_one_step_takes_it_at_full_rate() -> None:
    assert learning_rate_at(0, 1, TrainSettings(learning_rate=0.5)) == 0.5
