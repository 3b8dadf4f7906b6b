"""A snapshot can be proved: same pairs, same hash; every row traces; nothing is written over."""

import dataclasses
import json
import random
from pathlib import Path

import pytest

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import PreferencePair, SampledText
from dpo_studio.errors import BadInput, Conflict
from dpo_studio.files import read_jsonl, sha256_of_file
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.snapshot import dataset_hash, write_snapshot


def pairs(count: int) -> list[PreferencePair]:
    return [
        PreferencePair(
            pair_id=f"c{number:03d}:vote",
            messages=(Message("user", f"prompt {number}"),),
            chosen=SampledText(f"yes {number}", (number, 2), "v1"),
            rejected=SampledText("no", None, ""),
            vote_ids=(f"vote{number}", f"also{number}"),
            labelers=("ann", "bob"),
        )
        for number in range(count)
    ]


def test_the_order_of_the_input_does_not_matter(tmp_path: Path) -> None:
    given = pairs(60)
    shuffled = random.Random(1).sample(given, len(given))
    one = write_snapshot(given, RoundPaths(tmp_path / "1"), 0.2)
    two = write_snapshot(shuffled, RoundPaths(tmp_path / "2"), 0.2)
    assert one == two
    assert one.num_train + one.num_heldout == 60 and one.num_heldout > 0
    assert one.vote_ids == tuple(sorted(one.vote_ids)) and len(one.vote_ids) == 120


def test_one_other_vote_is_another_hash(tmp_path: Path) -> None:
    one = write_snapshot(pairs(20), RoundPaths(tmp_path / "1"), 0.2)
    two = write_snapshot(pairs(19), RoundPaths(tmp_path / "2"), 0.2)
    assert one.dataset_sha256 != two.dataset_sha256


def test_moving_pairs_between_the_files_is_another_hash() -> None:
    assert dataset_hash("sha256:a", "sha256:b") != dataset_hash("sha256:b", "sha256:a")


def test_the_hashes_are_those_of_the_files(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    snapshot = write_snapshot(pairs(20), paths, 0.2)
    assert snapshot.train_sha256 == sha256_of_file(paths.train)
    assert snapshot.heldout_sha256 == sha256_of_file(paths.heldout)
    assert snapshot.dataset_sha256 == dataset_hash(snapshot.train_sha256, snapshot.heldout_sha256)


def test_every_row_traces_to_votes_labelers_texts_and_versions(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    write_snapshot(pairs(1), paths, 0.0)
    assert list(read_jsonl(paths.train)) == [
        {
            "pair_id": "c000:vote",
            "prompt": [{"role": "user", "content": "prompt 0"}],
            "chosen": [{"role": "assistant", "content": "yes 0"}],
            "rejected": [{"role": "assistant", "content": "no"}],
            "chosen_ids": [0, 2],
            "rejected_ids": None,
            "chosen_version": "v1",
            "rejected_version": "",
            "vote_ids": ["vote0", "also0"],
            "labelers": ["ann", "bob"],
        }
    ]
    assert paths.heldout.read_bytes() == b""


def test_a_ranking_is_frozen_whole_with_where_each_response_came_from(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    between = (SampledText("so so", None, ""), SampledText("well", (4, 5), "v2"))
    ranking = dataclasses.replace(pairs(1)[0], between=between)
    snapshot = write_snapshot([ranking, *pairs(3)[1:]], paths, 0.0)
    row, *others = read_jsonl(paths.train)
    assert row["between"] == [
        {"role": "assistant", "content": "so so", "ids": None, "version": ""},
        {"role": "assistant", "content": "well", "ids": [4, 5], "version": "v2"},
    ]
    assert all("between" not in other for other in others)
    turned = dataclasses.replace(ranking, between=between[::-1])
    other = write_snapshot([turned, *pairs(3)[1:]], RoundPaths(tmp_path / "turned"), 0.0)
    assert other.dataset_sha256 != snapshot.dataset_sha256


def test_no_prompt_is_in_both_files(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    write_snapshot(pairs(100), paths, 0.3)
    train, heldout = (
        {json.dumps(row["prompt"]) for row in read_jsonl(path)} for path in (paths.train, paths.heldout)
    )
    assert train and heldout and train.isdisjoint(heldout)


def test_a_snapshot_is_never_written_over(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path)
    write_snapshot(pairs(3), paths, 0.0)
    before = paths.train.read_bytes()
    with pytest.raises(Conflict, match="never written over"):
        write_snapshot(pairs(4), paths, 0.0)
    assert paths.train.read_bytes() == before


def test_nothing_to_train_on_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    paths = RoundPaths(tmp_path / "round")
    with pytest.raises(BadInput, match="found none"):
        write_snapshot([], paths, 0.1)
    assert not paths.root.exists()
