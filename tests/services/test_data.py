"""Imports are all-or-nothing and name the line; exports are consistent and safe to open."""

import builtins
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import Choice, PreferencePair
from dpo_studio.errors import BadInput
from dpo_studio.services import data as data_module
from dpo_studio.services.data import DataService, ImportResult
from dpo_studio.services.pair_formats import parse_preference, parse_prompt
from dpo_studio.store import pairs, prompts
from dpo_studio.store.database import Database
from tests.store.makers import START, add_comparison, cast

USER = {"role": "user", "content": "Hello?"}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "studio.db")
    database.open()
    yield database
    database.close()


@pytest.fixture
def data(database: Database) -> DataService:
    return DataService(database, now=lambda: START)


def stored(database: Database) -> list[PreferencePair]:
    return list(pairs.iterate_pairs(database))


def lines(*values: Any) -> list[str]:
    return [json.dumps(value) for value in values]


def queue(database: Database) -> int:
    with database.read() as session:
        return prompts.count_prompts(session=session)


SHAPES: dict[str, Any] = {
    "trl conversational": {"prompt": [USER], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
    "trl without a prompt": {"chosen": [USER, assistant("yes")], "rejected": [USER, assistant("no")]},
    "trl with a plain prompt": {
        "prompt": "Hello?",
        "chosen": [assistant("yes")],
        "rejected": [assistant("no")],
    },
    "a prompt beside whole conversations": {
        "prompt": "Hello?",
        "chosen": [USER, assistant("yes")],
        "rejected": [USER, assistant("no")],
    },
    "plain strings": {"prompt": "Hello?", "chosen": "yes", "rejected": "no"},
    "hh transcripts": {
        "chosen": "\n\nHuman: Hello?\n\nAssistant: yes",
        "rejected": "\n\nHuman: Hello?\n\nAssistant: no",
    },
    "openai": {
        "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [assistant("yes")],
        "non_preferred_output": [assistant("no")],
    },
    "ranked": {"prompt": "Hello?", "responses": ["yes", "no"]},
    "ranked over messages": {"prompt": [USER], "responses": ["yes", "no"]},
    "more columns than needed": {
        "prompt": "Hello?",
        "chosen": "yes",
        "rejected": "no",
        "score": 3,
        "id": "x",
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_known_shape_is_the_same_preference(data: DataService, database: Database, shape: str) -> None:
    assert data.import_pairs(lines(SHAPES[shape])) == ImportResult(1, 0)
    (pair,) = stored(database)
    assert pair.messages == (Message("user", "Hello?"),)
    assert (pair.chosen.text, pair.rejected.text) == ("yes", "no")


def test_the_same_preference_in_every_shape_is_stored_once(data: DataService, database: Database) -> None:
    assert data.import_pairs(lines(*SHAPES.values())) == ImportResult(1, len(SHAPES) - 1)
    assert data.import_pairs(lines(*SHAPES.values())) == ImportResult(0, len(SHAPES))
    assert len(stored(database)) == 1


def test_a_ranking_of_three_is_three_pairs(data: DataService, database: Database) -> None:
    data.import_pairs(lines({"prompt": "Hello?", "responses": ["best", "good", "worst"]}))
    found = {(pair.chosen.text, pair.rejected.text) for pair in stored(database)}
    assert found == {("best", "good"), ("best", "worst"), ("good", "worst")}


def hh(*turns: str) -> str:
    """A transcript; a turn starts with H or A."""
    names = {"H": "Human", "A": "Assistant"}
    return "".join(f"\n\n{names[turn[0]]}: {turn[1:]}" for turn in turns)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "responses"),
    [
        (("Hone", "Atwo", "Hmore", "Ayes"), ("Hone", "Atwo", "Hmore", "Ano"), "one|two|more", ("yes", "no")),
        # Two turns of the assistant in the shared part become one.
        (("Hone", "Atwo", "Amore", "Hthree", "Ayes"), ("Hone", "Atwo", "Amore", "Hthree", "Ano"),
         "one|two\n\nmore|three", ("yes", "no")),
        # After the last shared question they belong to the answer.
        (("Hone", "Ayes", "Amore"), ("Hone", "Ano"), "one", ("yes\n\nmore", "no")),
        (("Hone", "Asame", "Ayes"), ("Hone", "Asame", "Ano"), "one", ("same\n\nyes", "same\n\nno")),
        (("Hone", "Ayes"), ("Hone", "A"), "one", ("yes", "")),
    ],
)  # fmt: skip
def test_hh_transcripts_part_at_the_last_shared_question(
    chosen: Sequence[str], rejected: Sequence[str], prompt: str, responses: tuple[str, ...]
) -> None:
    found = parse_preference({"chosen": hh(*chosen), "rejected": hh(*rejected)})
    assert found is not None
    assert "|".join(message.content for message in found.messages) == prompt
    assert found.responses == responses


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "same", "rejected": " same\n"},
        {"prompt": "Hi", "chosen": "", "rejected": "no"},
        {"prompt": "Hi", "responses": ["a", "a", "a"]},
    ],
)
def test_rows_that_rank_nothing_are_left_out_and_counted(
    data: DataService, database: Database, row: Any
) -> None:
    assert data.import_pairs(lines(row, SHAPES["ranked"])) == ImportResult(1, 0, 1)
    assert len(stored(database)) == 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("not json", "expected one JSON value"),
        ("{", "expected one JSON value"),
        ("[" * 100_000, "depth"),
        ('{"prompt": "Hi", "responses": ["a", NaN]}', "expected one JSON value, .*the constant NaN"),
        ("[1]", "expected an object, found list"),
        ("{}", "found the keys"),
        ('{"prompt": "Hi", "chosen": "a"}', r"found the keys \['chosen', 'prompt'\]"),
        ('{"prompt": "Hi", "responses": ["a"]}', "responses: expected 2 to 16"),
        ('{"prompt": "Hi", "responses": ["a", 1]}', "responses: expected a list of texts"),
        ('{"prompt": 3, "responses": ["a", "b"]}', "prompt: expected text or a list of messages, found int"),
        ('{"prompt": "  ", "responses": ["a", "b"]}', "expected some text"),
        ('{"prompt": [{"role": "tool", "content": "x"}], "responses": ["a", "b"]}', "role system, user or"),
        ('{"prompt": [{"role": "user"}], "responses": ["a", "b"]}', r"prompt\[0\]: expected"),
        (json.dumps({"prompt": [assistant("x")], "responses": ["a", "b"]}), "role system or user"),
        ('{"chosen": "Hi", "rejected": "Ho"}', "transcript that starts with"),
        (json.dumps({"chosen": hh("Ha", "Ab"), "rejected": hh("Hc", "Ad")}), "last shared Human turn"),
        (json.dumps({"chosen": hh("Ha", "Ab", "Hc"), "rejected": hh("Ha", "Ad")}), "last shared Human turn"),
        (json.dumps({"chosen": [USER], "rejected": [USER]}), "expected one message of the assistant"),
        (json.dumps({"chosen": [USER, assistant("a")], "rejected": [assistant("b")]}), "share all messages"),
        (json.dumps({"chosen": [assistant("a")], "rejected": [assistant("b")]}), "expected a prompt beside"),
        (json.dumps({"prompt": "Hi", "chosen": "x" * 32_001, "rejected": "b"}), "at most 32000"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_nothing_is_imported(
    data: DataService, database: Database, bad: str, words: str
) -> None:
    given_lines = [
        *lines(SHAPES["ranked"]),
        "",
        *lines(SHAPES["openai"]),
        bad,
        *lines(SHAPES["plain strings"]),
    ]
    with pytest.raises(BadInput, match=rf"^line 4: .*{words}.*nothing was imported$"):
        data.import_pairs(given_lines)
    assert stored(database) == []


def test_a_line_that_is_too_long_is_refused_before_it_is_parsed(data: DataService) -> None:
    with pytest.raises(BadInput, match="line 1: expected at most 1000000 characters"):
        data.import_pairs(["x" * 1_000_001])


def test_a_file_with_too_many_rows_is_refused(data: DataService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_module, "MAX_ROWS", 3)
    assert data.import_prompts(["a", "", "b", "c"]).new == 3
    with pytest.raises(BadInput, match="at most 3 rows"):
        data.import_prompts(["d", "e", "f", "g"])


@pytest.mark.parametrize(
    "line",
    [
        "What is rain?",
        '"What is rain?"',
        '{"prompt": "What is rain?"}',
        '{"prompt": [{"role": "user", "content": "What is rain?"}]}',
        '{"messages": [{"role": "user", "content": "What is rain?"}]}',
        "  What is rain? \r\n",
    ],
)
def test_prompts_come_in_every_shape(data: DataService, database: Database, line: str) -> None:
    assert data.import_prompts([line]) == ImportResult(1, 0)
    with database.read() as session:
        prompt = prompts.next_prompt("ann", session=session)
    assert prompt is not None
    assert [message.content.strip() for message in prompt.messages] == ["What is rain?"]


def test_known_prompts_are_counted_and_kept_once(data: DataService, database: Database) -> None:
    assert data.import_prompts(["a", "b", "a"]) == ImportResult(2, 1)
    assert data.import_prompts(["b", "c"]) == ImportResult(1, 1)
    assert queue(database) == 3


@pytest.mark.parametrize(
    "bad", ['{"prompt": ', '{"text": "x"}', '{"prompt": "a", "messages": []}', '{"messages": []}', "[1, 2]"]
)
def test_a_bad_prompt_line_is_named_and_nothing_is_imported(
    data: DataService, database: Database, bad: str
) -> None:
    with pytest.raises(BadInput, match=r"^line 2: expected|^line 2: messages|^line 2: prompt"):
        data.import_prompts(["fine", bad])
    assert queue(database) == 0


@pytest.mark.parametrize("bad", ['{"prompt": "a"', '["a", ', '"Well," she said, "what now?"', " {curly}"])
def test_a_line_that_looks_like_json_and_is_none_says_how_to_write_it(
    data: DataService, database: Database, bad: str
) -> None:
    with pytest.raises(BadInput, match=r"^line 2: .*begins with \{, \[ or .* must be written as JSON"):
        data.import_prompts(["fine", bad])
    assert queue(database) == 0


def test_addresses_in_prompts_are_text() -> None:
    assert parse_prompt("file:///etc/passwd")[0].content == "file:///etc/passwd"


@pytest.fixture
def filled(data: DataService, database: Database) -> DataService:
    """Two judged comparisons (one edited) and one import."""
    with database.write() as session:
        cast(session, add_comparison(session, a="=1+1", b="bad", version="v2"), Choice.A)
        cast(session, add_comparison(session), Choice.BOTH_BAD, edited='said "so",\nand went')
    data.import_pairs(lines({"prompt": "@cmd", "chosen": "-yes", "rejected": "+no"}))
    return data


def export(data: DataService, format: str) -> bytes:
    return b"".join(data.export_pairs(format))


def test_trl_rows_are_conversational_with_provenance(filled: DataService) -> None:
    rows = [json.loads(line) for line in export(filled, "trl").splitlines()]
    assert len(rows) == 4
    voted = next(row for row in rows if row["chosen"][0]["content"] == "=1+1")
    assert voted["prompt"] == [USER]
    assert voted["rejected"] == [assistant("bad")]
    assert (voted["chosen_version"], voted["labelers"], len(voted["vote_ids"])) == ("v2", ["ann"], 1)
    assert not any(key.endswith("_ids") and key != "vote_ids" for row in rows for key in row)


def test_a_trl_export_imports_as_the_same_preferences(filled: DataService, tmp_path: Path) -> None:
    other = Database(tmp_path / "other.db")
    other.open()
    exported = export(filled, "trl").decode()
    second = DataService(other)
    assert second.import_pairs(exported.split("\n")).new == 4
    again = export(second, "trl").decode()
    assert second.import_pairs(again.split("\n")).duplicates == 4
    other.close()
    texts = ("prompt", "chosen", "rejected")

    def content(text: str) -> list[str]:
        return sorted(json.dumps([json.loads(line)[key] for key in texts]) for line in text.splitlines())

    assert content(again) == content(exported)


def test_an_openai_export_imports_as_the_same_preferences(filled: DataService, tmp_path: Path) -> None:
    other = Database(tmp_path / "other.db")
    other.open()
    second = DataService(other)
    exported = export(filled, "openai")
    assert second.import_pairs(exported.decode().split("\n")).new == 4
    other.close()
    assert {frozenset(json.loads(line)) for line in exported.splitlines()} == {
        frozenset({"input", "preferred_output", "non_preferred_output"})
    }


def test_no_csv_cell_starts_a_formula(filled: DataService) -> None:
    rows = list(csv.reader(io.StringIO(export(filled, "csv").decode(), newline="")))
    assert rows[0][:4] == ["pair_id", "prompt", "chosen", "rejected"]
    assert len(rows) == 5
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r", "\0")) for row in rows for cell in row)
    assert {"'=1+1", "'-yes", 'said "so",\nand went'} <= {row[2] for row in rows}
    assert "'+no" in {row[3] for row in rows}


def test_parquet_holds_the_same_rows(filled: DataService) -> None:
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(export(filled, "parquet")))
    rows = list(csv.DictReader(io.StringIO(export(filled, "csv").decode(), newline="")))
    assert [row["pair_id"] for row in table.to_pylist()] == [row["pair_id"] for row in rows]
    assert "=1+1" in table.column("chosen").to_pylist()


def test_parquet_without_its_library_is_a_sentence(
    filled: DataService, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BadInput, match="needs pyarrow"):
        filled.export_pairs("parquet")


@pytest.mark.parametrize("format", ["", "xlsx", "../trl"])
def test_an_unknown_format_is_refused_at_once(data: DataService, format: str) -> None:
    with pytest.raises(BadInput, match="expected one of"):
        data.export_pairs(format)


@pytest.mark.parametrize(("format", "size"), [("trl", 0), ("openai", 0), ("csv", 1)])
def test_an_empty_studio_exports_an_empty_file(data: DataService, format: str, size: int) -> None:
    assert len(export(data, format).splitlines()) == size


def test_an_export_streams(data: DataService, database: Database) -> None:
    """The first bytes come before the second page of rows has been read."""
    data.import_pairs(lines(*({"prompt": f"{n}", "responses": ["a", "b"]} for n in range(pairs.PAGE + 1))))
    chunks = data.export_pairs("trl")
    assert json.loads(next(chunks))
    with database.write() as session:
        prompts.add_prompts([[Message("user", "x")]], source="test", now=START, session=session)
    assert len(list(chunks)) == pairs.PAGE


KEYS = ["prompt", "chosen", "rejected", "responses", "input", "messages", "role", "content"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["prompt", "chosen", "rejected", "responses", "input", "messages", "role", "content"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(json_values)
def test_no_json_value_is_anything_but_a_ranking_or_a_sentence(value: Any) -> None:
    for parse in (parse_preference, parse_prompt):
        try:
            parse(value)
        except BadInput as error:
            assert str(error)
