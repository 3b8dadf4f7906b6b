"""The cache of reference log-probabilities: the same numbers for the same thing, and nothing for another."""

import dataclasses
from pathlib import Path

import pytest
import torch

from dpo_studio.training.reference_cache import ReferenceCache, ReferenceKey
from tests.dpo.models import random_pairs

KEY = ReferenceKey("sha256:model", "", "torch.float32", "cpu", "prefix-shared", 1, 1.0)
PAIRS = random_pairs([(5, 3, 2), (4, 1, 6), (2, 2, 2)])
LOGPS = torch.tensor([[-1.1, -2.2], [-1 / 3, -1e3], [-0.1, -7.0]], dtype=torch.float64)


def test_what_was_kept_comes_back_to_the_bit(tmp_path: Path) -> None:
    ReferenceCache(tmp_path, KEY).keep(PAIRS, LOGPS)
    assert torch.equal(ReferenceCache(tmp_path, KEY).find(PAIRS[::-1]), LOGPS.flip(0))


def test_an_unknown_pair_is_nan_and_joins_the_known_ones(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, KEY)
    cache.keep(PAIRS[:2], LOGPS[:2])
    assert cache.find(PAIRS).isnan().all(dim=1).tolist() == [False, False, True]
    cache.keep(PAIRS[2:], LOGPS[2:])
    assert torch.equal(cache.find(PAIRS), LOGPS)


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": "sha256:other"},
        {"adapter_sha256": "sha256:adapter"},
        {"dtype": "torch.bfloat16"},
        {"device": "cuda"},
        {"layout": "padded"},
        {"layout_version": 2},
        {"tail_weight": 0.5},
        {"torch_version": "2.0"},
    ],
)
def test_any_other_circumstance_finds_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    ReferenceCache(tmp_path, KEY).keep(PAIRS, LOGPS)
    other = ReferenceCache(tmp_path, dataclasses.replace(KEY, **change))  # type: ignore[arg-type]
    assert other.find(PAIRS).isnan().all()


def test_other_tokens_are_another_pair(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, KEY)
    cache.keep(PAIRS, LOGPS)
    moved = dataclasses.replace(
        PAIRS[0], prompt=PAIRS[0].prompt[:-1], chosen=(PAIRS[0].prompt[-1], *PAIRS[0].chosen)
    )
    assert cache.find([moved]).isnan().all()


def test_a_ranking_has_a_number_for_each_response_and_is_another_than_its_pair(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, KEY)
    ranking = dataclasses.replace(PAIRS[0], between=((7, 8), (9,)))
    logps = torch.tensor([[-1 / 3, -0.1, -1 / 7, -9.0], [-1.1, -2.2, 0.0, 0.0]], dtype=torch.float64)
    cache.keep([ranking, PAIRS[1]], logps)
    assert torch.equal(cache.find([ranking, PAIRS[1]]), logps)
    turned = dataclasses.replace(ranking, between=((9,), (7, 8)))
    found = cache.find([PAIRS[0], turned, PAIRS[1]])
    assert found.isnan().tolist() == [[True] * 2 + [False] * 2, [True] * 4, [False] * 4]


def test_another_count_of_numbers_than_of_responses_is_nothing_known(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, KEY)
    ranking = dataclasses.replace(PAIRS[0], between=((7, 8),))
    cache.keep([ranking], torch.tensor([[-1.0, -2.0, -3.0]], dtype=torch.float64))
    (file,) = tmp_path.iterdir()
    for numbers in ("[-1.0,-2.0]", "[-1.0,-2.0,-3.0,-4.0]", "[]"):
        file.write_text(file.read_text().replace("[-1.0,-2.0,-3.0]", numbers))
        assert cache.find([ranking, PAIRS[1]]).isnan().tolist() == [[True] * 3, [True, True, False]]
        cache.keep([ranking], torch.tensor([[-1.0, -2.0, -3.0]], dtype=torch.float64))
    assert cache.find([ranking]).tolist() == [[-1.0, -2.0, -3.0]]


def test_numbers_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, KEY)
    cache.keep(PAIRS[:1], torch.tensor([[-1.0, float("-inf")]], dtype=torch.float64))
    assert cache.find(PAIRS[:1]).isnan().all()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"{}\n", b'{"pair": 1, "logps": [1]}\n', b"[1]\n", b"nonsense\n"]
)
def test_a_broken_file_is_worth_none_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    cache = ReferenceCache(tmp_path, KEY)
    cache.keep(PAIRS, LOGPS)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert cache.find(PAIRS).isnan().all()
    cache.keep(PAIRS, LOGPS)
    assert torch.equal(cache.find(PAIRS), LOGPS)
