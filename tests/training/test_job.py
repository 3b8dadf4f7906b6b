"""A round's folder is read exactly or refused with a sentence."""

from pathlib import Path

import pytest

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import PreferencePair, SampledText
from dpo_studio.errors import BadInput
from dpo_studio.files import read_json, write_json
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.snapshot import pair_to_row
from dpo_studio.training.job import read_assignment
from tests.training.rounds import make_round, row, rows


def test_pairs_come_back_in_order_with_their_ids_and_votes(tmp_path: Path, model: Path) -> None:
    paths = make_round(tmp_path, model, train=[row(1, "a", "b", chosen_ids=[5, 6]), row(2, "c", "d")])
    first, second = read_assignment(paths).train
    assert (first.pair_id, first.chosen.token_ids, first.rejected.token_ids) == ("p1:vote", (5, 6), None)
    assert (second.messages[0].content, second.vote_ids) == ("Question 2, please?", ("v2",))


def test_a_ranking_comes_back_as_it_was_frozen(tmp_path: Path, model: Path) -> None:
    best, fair, worst = SampledText("a", (5, 6), "v1"), SampledText("b"), SampledText("c", (7,), "base")
    pair = PreferencePair("p:all", (Message("user", "q"),), best, worst, (), (), between=(fair, best))
    paths = make_round(tmp_path, model, train=[pair_to_row(pair)])
    assert read_assignment(paths).train == (pair,)


def test_a_changed_snapshot_is_refused(tmp_path: Path, model: Path) -> None:
    paths = make_round(tmp_path, model)
    paths.train.write_text(paths.train.read_text().replace("Yes 3", "No 3"))
    with pytest.raises(BadInput, match=r"train\.jsonl: expected sha256:.* the snapshot was changed"):
        read_assignment(paths)


def test_a_wrong_count_is_refused(tmp_path: Path, model: Path) -> None:
    paths = make_round(tmp_path, model, num_heldout=3)
    with pytest.raises(BadInput, match=r"heldout\.jsonl: expected 3 pairs, found 0"):
        read_assignment(paths)


@pytest.mark.parametrize(
    "bad",
    [
        {"pair_id": "x"},
        [],
        row(1, "a", "b") | {"prompt": [{"role": "user"}]},
        row(1, "a", "b") | {"chosen": []},
        row(1, "a", "b") | {"rejected": [{"role": "assistant", "content": 5}]},
        row(1, "a", "b") | {"between": [{"role": "assistant", "content": "c"}]},
        row(1, "a", "b") | {"between": ["c"]},
    ],
)
def test_a_row_that_is_no_pair_names_its_line(tmp_path: Path, model: Path, bad: object) -> None:
    paths = make_round(tmp_path, model, train=[*rows(1), bad])
    with pytest.raises(BadInput, match=r"train\.jsonl line 2"):
        read_assignment(paths)


def test_a_job_of_another_version_of_the_code_is_refused(tmp_path: Path, model: Path) -> None:
    paths = make_round(tmp_path, model)
    write_json(paths.job, {**read_json(paths.job), "surprise": 1})
    with pytest.raises(BadInput, match="unknown key 'surprise'"):
        read_assignment(paths)


@pytest.mark.parametrize("content", ["", "{", "\xff"])
def test_an_unreadable_job_is_a_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "job.json").write_text(content, "latin-1")
    with pytest.raises(BadInput, match="expected JSON"):
        read_assignment(RoundPaths(tmp_path))


def test_an_empty_folder_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"found no .*job\.json"):
        read_assignment(RoundPaths(tmp_path))


def test_a_doubted_pair_keeps_its_probability_through_the_snapshot(tmp_path: Path, model: Path) -> None:
    sure, doubted = (
        PreferencePair(
            f"c{n}:vote", (Message("user", "q"),), SampledText("a"), SampledText("b"), (), (), probability
        )
        for n, probability in enumerate((1.0, 2 / 3))
    )
    paths = make_round(tmp_path, model, train=[pair_to_row(sure), pair_to_row(doubted)])
    assert read_assignment(paths).train == (sure, doubted)
    assert "chosen_probability" not in pair_to_row(sure), "its hash is that of earlier snapshots"


@pytest.mark.parametrize("value", [1.5, -0.1, "x", None])
def test_a_probability_that_is_none_is_refused(tmp_path: Path, model: Path, value: object) -> None:
    paths = make_round(tmp_path, model, train=[row(1, "a", "b", chosen_probability=value)])
    with pytest.raises(BadInput, match=r"train\.jsonl line 1"):
        read_assignment(paths)
