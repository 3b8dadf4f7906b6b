"""A studio's own export is no news to it, whatever became of the votes; what was changed in it is."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dpo_studio.domain.preference import Choice
from dpo_studio.services.data import DataService, ImportResult
from dpo_studio.store import pairs, votes
from dpo_studio.store.database import Database
from tests.store.makers import START, add_comparison, at, cast, opened


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = opened(tmp_path / "studio.db")
    yield database
    database.close()


@pytest.fixture
def data(database: Database) -> DataService:
    """Two judged comparisons, one with an edit, and an import of three ranked answers: six pairs."""
    with database.write() as session:
        cast(session, add_comparison(session, a=" yes\x07 ", b="no"), Choice.A)
        cast(session, add_comparison(session, prompt="Really?"), Choice.BOTH_BAD, edited="better")
    data = DataService(database, now=lambda: START)
    data.import_pairs([json.dumps({"prompt": "Tea?", "responses": ["1", "2", "3"]})])
    return data


def exported(data: DataService, format: str = "trl") -> list[str]:
    return b"".join(data.export_pairs(format)).decode().split("\n")


def new_pairs(database: Database) -> int:
    with database.read() as session:
        return pairs.count_new(session=session)


@pytest.mark.parametrize("format", ["trl", "openai"])
def test_its_own_export_brings_nothing_new(data: DataService, database: Database, format: str) -> None:
    """Every voted pair came back as an import: six new preferences that nobody had given."""
    before = new_pairs(database)
    assert data.import_pairs(exported(data, format)) == ImportResult(0, before)
    assert new_pairs(database) == before == 6


def test_a_file_brings_no_withdrawn_or_revised_vote_back(data: DataService, database: Database) -> None:
    with database.write() as session:
        shared = add_comparison(session, prompt="Coffee?", a="left", b="right")
        cast(session, shared, Choice.A)
    old = exported(data)
    with database.write() as session:
        votes.exclude_labeler("ann", now=at(1), session=session)
    assert data.import_pairs(old).new == 0
    assert new_pairs(database) == 3, "the ranked import alone is left"


def test_an_export_that_went_through_another_studio_brings_nothing_new(
    data: DataService, database: Database, tmp_path: Path
) -> None:
    other = opened(tmp_path / "other.db")
    second = DataService(other)
    assert second.import_pairs(exported(data)).new == 6
    assert second.import_pairs(exported(data)) == ImportResult(0, 6), "known under another name by now"
    assert data.import_pairs(exported(second)) == ImportResult(0, 6)
    other.close()
    assert new_pairs(database) == 6


@pytest.mark.parametrize(
    "change",
    [
        {"chosen": [{"role": "assistant", "content": "quite another answer"}]},
        {"prompt": [{"role": "user", "content": "Quite another question?"}]},
        {"pair_id": "0" * 32 + ":vote", "rejected": [{"role": "assistant", "content": "worse"}]},
    ],
)
def test_a_row_with_other_words_is_new_whatever_it_calls_itself(
    data: DataService, change: dict[str, Any]
) -> None:
    row = json.loads(exported(data)[0])
    assert data.import_pairs([json.dumps(row | change)]) == ImportResult(1, 0)


@pytest.mark.parametrize("name", [7, None, "x", "\ud800" * 32 + ":vote", ["a"], "0" * 4000])
def test_a_strange_pair_id_is_somebody_elses_column(data: DataService, name: Any) -> None:
    row = {"prompt": "New?", "chosen": "a", "rejected": "b", "pair_id": name}
    assert data.import_pairs([json.dumps(row)]) == ImportResult(1, 0)


def test_a_contradicting_preference_of_a_foreign_file_counts(data: DataService) -> None:
    assert data.import_pairs([json.dumps({"prompt": "Tea?", "chosen": "3", "rejected": "1"})]).new == 1
