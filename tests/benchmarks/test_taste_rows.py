"""Rows survive a killed run, and a table says which settings did what."""

from dataclasses import replace
from pathlib import Path

from benchmarks.evaluation import Figures
from benchmarks.taste_rows import Key, Row, RowFile, settings_text
from benchmarks.taste_table import line_of, settings_table, tables

FIGURES = Figures(0.25, 0.2, 0.3, 29.1, 0.95, 0.98, 0.9, 0.01, 1.0, 400)
KEY = Key("plain", "shorter", 100, 0.0, 1, settings_text({"beta": 0.1}), "ab" * 32, "eval:all:2", 0)
ROW = Row(
    key=KEY,
    base=FIGURES,
    live=replace(FIGURES, rate=0.91, sensible=0.93),
    parts={"shorter": (0.25, 0.91), "warm": (0.3, 0.4)},
    shown=103,
    num_pairs=100,
    num_steps=44,
    planned_steps=44,
    kl_per_token=0.2,
    heldout_accuracy=None,
    passed=True,
    reason="",
    seconds=20.0,
    cpu_seconds=14.0,
)


def test_a_row_read_back_is_the_row(tmp_path: Path) -> None:
    RowFile(tmp_path / "rows.jsonl").add(ROW)
    assert RowFile(tmp_path / "rows.jsonl").rows == [ROW]


def test_what_is_in_the_file_is_neither_done_nor_written_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    RowFile(path).add(ROW)
    again = RowFile(path)
    assert KEY in again
    assert replace(KEY, model_sha256="cd" * 32) not in again, "other weights are another measurement"
    again.add(ROW)
    assert len(path.read_text().splitlines()) == 1


def test_two_processes_append_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first, second = RowFile(path), RowFile(path)
    first.add(ROW)
    second.add(replace(ROW, key=replace(KEY, taste="warm")))
    assert [row.key.taste for row in RowFile(path).rows] == ["shorter", "warm"]


def test_a_line_shows_each_part_of_two_tastes() -> None:
    assert "25% → **91%**<br>shorter 25% → 91%<br>warm 30% → 40%" in line_of(ROW)


def test_settings_are_named_by_what_differs() -> None:
    changed = replace(ROW, key=replace(KEY, settings=settings_text({"beta": 0.2})))
    _, _, first, second = settings_table([ROW, changed])
    assert first.startswith("| as they are | 1 | 1 | 91% |")
    assert second.startswith("| beta 0.2 | 1 | 1 | 91% |")
    assert "| -2.0% |" in second, "the loss of sensible answers, in points"


def test_every_kind_has_its_table() -> None:
    chain = replace(ROW, key=replace(KEY, kind="rounds", round=2))
    titles = [line for line in tables([ROW, chain]) if line.startswith("###")]
    assert titles == ["### One round", "### Rounds in a row, fresh votes on the live version each time"]
