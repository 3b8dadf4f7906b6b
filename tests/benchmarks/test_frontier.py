"""Pure parts of the frontier: labels follow the reward, KL is the one meant, tables say what rows hold."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.frontier import checkpoints, copy_adapter, parse_arguments
from benchmarks.frontier_plot import draw
from benchmarks.frontier_rows import (
    Key,
    Mean,
    Point,
    Row,
    RowFile,
    loss_gap,
    parity_table,
    points_table,
)
from benchmarks.known_reward import (
    log_ratios,
    means_by_prompt,
    preference_probability,
    prefers_first,
)
from dpo_studio.dpo.batches import Batch, TokenSequence

CPU = torch.device("cpu")
KEY = Key("formal", "dpo", 0.1, "ours", '{"beta":0.1}', "200 pairs", "ab" * 32, "held_out:all:1")
ROW = Row(
    KEY, (Point(4, (0.2, 0.4), (0.0, 1.0), 9.0), Point(8, (0.5, 0.7), (1.0, 3.0), 9.4)), (0.69, 0.6), 7.0
)
TRL = Row(replace(KEY, who="trl"), (Point(8, (0.5, 0.6), (1.0, 2.0), 9.4),), (0.69, 0.5), 20.0)
BASE = Row(
    replace(KEY, loss="", beta=0.0, who="base", settings="", data=""),
    (Point(0, (0.1, 0.3), (0.0, 0.0), 9.0),),
    (),
    0.0,
)


@pytest.mark.parametrize(
    ("a", "b", "scale"), [(0.7, 0.5, 10.0), (0.5, 0.7, 10.0), (0.4, 0.4, 10.0), (1.0, 0, 0.5)]
)
def test_the_share_of_labels_is_the_sigmoid_of_the_scaled_difference(
    a: float, b: float, scale: float
) -> None:
    rng = random.Random(0)
    count = 20_000
    share = sum(prefers_first(a, b, scale, rng) for _ in range(count)) / count
    expected = 1 / (1 + math.exp(-scale * (a - b)))
    assert preference_probability(a, b, scale) == pytest.approx(expected, abs=1e-12)
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count)


def test_the_two_sides_of_a_pair_share_all_probability_however_far_apart() -> None:
    for difference in (0.0, 0.3, 5.0, 1e6):
        there = preference_probability(difference, 0.0, 1.0)
        back = preference_probability(0.0, difference, 1.0)
        assert there + back == pytest.approx(1)
        assert 0 <= back <= 0.5 <= there <= 1


def test_a_label_draws_one_number_whatever_the_rewards() -> None:
    first, second = random.Random(3), random.Random(3)
    prefers_first(0.9, 0.1, 10.0, first)
    prefers_first(0.1, 0.1, 10.0, second)
    assert first.random() == second.random()


class TwoTokens:
    """The scorer of a model that draws all tokens alike: 5 with `p` as policy, with `q` as base, else 6."""

    def __init__(self, p: float, q: float) -> None:
        self._p, self._q = p, q
        self._is_base = False

    @contextmanager
    def as_base(self) -> Iterator[None]:
        self._is_base = True
        yield
        self._is_base = False

    def sequence_logps(self, batch: Batch) -> Tensor:
        p = self._q if self._is_base else self._p
        tokens = torch.where(batch.targets == 5, math.log(p), math.log(1 - p)).double()
        return torch.stack([part.sum() for part in torch.split(tokens, list(batch.lengths))])


def test_a_log_ratio_is_summed_over_the_answer_and_not_over_its_prompt() -> None:
    scorer = TwoTokens(0.8, 0.5)
    answers = [TokenSequence((5, 5, 6), (5, 5, 6)), TokenSequence((6,), (6,))]
    found = log_ratios(scorer, answers, scorer.as_base, CPU)
    assert found == pytest.approx(
        [2 * math.log(0.8 / 0.5) + math.log(0.2 / 0.5), math.log(0.2 / 0.5)], abs=1e-6
    )


def test_the_mean_over_the_policys_own_answers_is_the_kl_a_sequence() -> None:
    """More answers than one batch holds, each of 3 tokens: 3 · KL of one token in closed form."""
    p, q, count = 0.8, 0.5, 6000
    scorer, rng = TwoTokens(p, q), random.Random(0)
    answers = [
        TokenSequence((9,), tuple(5 if rng.random() < p else 6 for _ in range(3))) for _ in range(count)
    ]
    estimate = Mean.of(log_ratios(scorer, answers, scorer.as_base, CPU))
    exact = 3 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert abs(estimate.value - exact) < 2 * estimate.half
    assert estimate.half < 0.05 * exact, "or the line above shows nothing"


def test_answers_to_one_prompt_count_as_one() -> None:
    assert means_by_prompt([1.0, 2.0, 5.0, 7.0], 2) == (1.5, 6.0)
    assert means_by_prompt([1.0, 2.0], 1) == (1.0, 2.0)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = random.Random(0)
    hits = 0
    for _ in range(1000):
        mean = Mean.of([rng.gauss(1.0, 2.0) for _ in range(40)])
        hits += abs(mean.value - 1.0) <= mean.half
    assert 925 <= hits <= 965, "40 values by the normal law: a little under 95 %"


def test_the_table_shows_the_last_point_of_each_training() -> None:
    _, _, base, ours = points_table([BASE, ROW])
    assert base == "| formal |  |  | base | 0 | 0.200 ± 0.196 | 0 | 9 |  |"
    assert ours == "| formal | DPO | 0.1 | ours | 8 | 0.600 ± 0.196 | 2.00 ± 1.96 | 9 | 7 |"


def test_the_two_sides_are_compared_prompt_by_prompt() -> None:
    _, _, line = parity_table([BASE, ROW, TRL])
    assert line == "| DPO | 0.1 | +0.050 ± 0.098 | +0.50 ± 0.98 | 1.0e-01 | 2.0e-01 | 7, 20 |"


def test_other_settings_are_not_compared_with_each_other() -> None:
    other = replace(TRL, key=replace(TRL.key, settings='{"beta":0.3}'))
    assert list(parity_table([ROW, other])) == []


def test_the_gap_of_losses_is_that_of_one_step_and_refuses_unequal_numbers_of_steps() -> None:
    assert loss_gap([1.0, 2.5], [1.0, 2.0]) == (0.5, 0.25)
    with pytest.raises(ValueError, match="zip"):
        loss_gap([1.0], [1.0, 2.0])


def test_a_row_read_back_is_the_row_and_other_weights_are_another_measurement(tmp_path: Path) -> None:
    RowFile(tmp_path / "rows.jsonl").add(ROW)
    again = RowFile(tmp_path / "rows.jsonl")
    assert again.get(KEY) == ROW
    assert again.get(replace(KEY, model_sha256="cd" * 32)) is None


@pytest.mark.parametrize(("points", "expected"), [(1, {50}), (2, {25, 50}), (3, {17, 33, 50})])
def test_the_last_step_is_always_measured(points: int, expected: set[int]) -> None:
    assert checkpoints(50, points) == expected


def test_a_training_has_no_more_points_than_steps() -> None:
    assert checkpoints(2, 5) == {1, 2}


def test_an_adapter_is_copied_by_name_and_one_of_other_names_is_refused() -> None:
    model = torch.nn.Linear(2, 2)
    names = {f"base_model.model.{name}": p.detach().clone().zero_() for name, p in model.named_parameters()}
    parameters = {name: torch.nn.Parameter(value) for name, value in names.items()}
    copy_adapter(model, parameters)
    assert torch.equal(parameters["base_model.model.weight"], model.weight)
    with pytest.raises(AssertionError, match="same parameters"):
        copy_adapter(model, {"base_model.model.weight": parameters["base_model.model.weight"]})


@pytest.mark.integration
def test_the_same_rows_draw_the_same_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, second = tmp_path / "first.png", tmp_path / "new" / "second.png"
    for path in (first, second):
        draw([BASE, ROW, TRL], path, title="title", reward="reward")
    assert first.read_bytes().startswith(b"\x89PNG")
    assert first.read_bytes() == second.read_bytes()


def test_a_picture_needs_base(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected base"):
        draw([ROW], tmp_path / "plot.png", title="", reward="")


def test_an_unknown_loss_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_arguments(["--losses", "ipo,dpo"]).losses == ["ipo", "dpo"]
    with pytest.raises(SystemExit):
        parse_arguments(["--losses", "kto"])
    assert "expected some of dpo, ipo, ipo-sum" in capsys.readouterr().err
