"""Preference pairs as bytes of a file, in four formats. Pure and streaming: one pair at a time.

`trl` is read by TRL's DPOTrainer as it is. In `csv`, cells that a spreadsheet would run as a formula get
an apostrophe in front.
"""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from dpo_studio.domain.preference import PreferencePair
from dpo_studio.errors import BadInput
from dpo_studio.files import canonical_json
from dpo_studio.rounds.snapshot import pair_to_row

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\0")
_COLUMNS = (
    *("pair_id", "prompt", "chosen", "rejected"),
    *("chosen_version", "rejected_version", "vote_ids", "labelers"),
)
_ROW_GROUP = 1_000

Encoder = Callable[[Iterable[PreferencePair]], Iterator[bytes]]


def encode(pairs: Iterable[PreferencePair], format: str) -> Iterator[bytes]:
    """The file's bytes. Raises BadInput at once for an unknown format or a missing library."""
    encoder = _ENCODERS.get(format)
    if encoder is None:
        raise BadInput(f"format: expected one of {sorted(_ENCODERS)}, found {format[:40]!r}")
    return encoder(pairs)


def _trl(pairs: Iterable[PreferencePair]) -> Iterator[bytes]:
    for pair in pairs:
        row = pair_to_row(pair)
        # TRL makes columns of these names itself.
        del row["chosen_ids"], row["rejected_ids"]
        yield _line(row)


def _openai(pairs: Iterable[PreferencePair]) -> Iterator[bytes]:
    for pair in pairs:
        row = pair_to_row(pair)
        yield _line(
            {
                "input": {"messages": row["prompt"], "tools": [], "parallel_tool_calls": True},
                "preferred_output": row["chosen"],
                "non_preferred_output": row["rejected"],
            }
        )


def _csv(pairs: Iterable[PreferencePair]) -> Iterator[bytes]:
    yield _csv_line(_COLUMNS)
    for pair in pairs:
        yield _csv_line([_safe_cell(cell) for cell in _flat(pair).values()])


def _parquet(pairs: Iterable[PreferencePair]) -> Iterator[bytes]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadInput(
            "format: parquet needs pyarrow, which is not installed; run pip install 'dpo-studio[parquet]' "
            "or choose trl"
        ) from error
    schema = pyarrow.schema([(name, pyarrow.string()) for name in _COLUMNS])

    def chunks() -> Iterator[bytes]:
        sink = _Sink()
        with parquet.ParquetWriter(sink, schema) as writer:
            rows = map(_flat, pairs)
            while group := list(islice(rows, _ROW_GROUP)):
                writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
                yield sink.take()
        yield sink.take()

    return chunks()


class _Sink(io.RawIOBase):
    """A file that forgets what was taken from it but not how long it has become."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._size += len(part)
        return len(part)

    def tell(self) -> int:
        return self._size

    def take(self) -> bytes:
        taken = b"".join(self._parts)
        self._parts.clear()
        return taken


def _flat(pair: PreferencePair) -> dict[str, str]:
    """One cell of text per column; the prompt as JSON messages."""
    row = pair_to_row(pair)
    return {
        "pair_id": pair.pair_id,
        "prompt": canonical_json(row["prompt"]),
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
        "chosen_version": pair.chosen.version,
        "rejected_version": pair.rejected.version,
        "vote_ids": " ".join(pair.vote_ids),
        "labelers": " ".join(pair.labelers),
    }


def _safe_cell(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell


def _csv_line(cells: Iterable[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL).writerow(cells)
    return text.getvalue().encode("utf-8")


def _line(row: Any) -> bytes:
    return (canonical_json(row) + "\n").encode("utf-8")


_ENCODERS: Mapping[str, Encoder] = {"trl": _trl, "openai": _openai, "csv": _csv, "parquet": _parquet}
FORMATS = tuple(_ENCODERS)
