"""The rows of the taste benchmarks as Markdown: `python -m benchmarks.taste_table rows.jsonl [...]`.

One table for each kind of run, and one that compares settings where a file holds several.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks import markdown
from benchmarks.taste_rows import Row, RowFile

GOOD_RATE = 0.9
_TITLES = {
    "plain": "One round",
    "disagree": "Two halves who disagree",
    "rounds": "Rounds in a row, fresh votes on the live version each time",
    "then": "A change of mind",
}
_COLUMNS = (
    "taste", "round", "votes (shown)", "flips", "base → live", "95 %", "words", "sensible", "grammatical",
    "out of scope", "refused", "KL/token", "held-out", "steps", "gate", "s (CPU-s)",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    rows = [row for file in parser.parse_args().files for row in RowFile(file).rows]
    sys.stdout.write("\n".join(tables(rows)) + "\n")


def tables(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of all tables."""
    for kind, title in _TITLES.items():
        chosen = [row for row in rows if row.key.kind == kind]
        if chosen:
            yield from (f"### {title}", "", *_conditions(chosen), "", header_of())
            yield from map(line_of, sorted(chosen, key=lambda row: _order(row, chosen)))
            yield ""
    if len({row.key.settings for row in rows}) > 1:
        yield from ("### Settings compared", "", *settings_table(rows), "")


def header_of() -> str:
    """The head of a table of rows."""
    return "\n".join(markdown.head(*_COLUMNS))


def line_of(row: Row) -> str:
    """One line of it."""
    base, live = row.base, row.live
    accuracy = "" if row.heldout_accuracy is None else f"{row.heldout_accuracy:.2f}"
    parts = "".join(f"<br>{name} {before:.0%} → {after:.0%}" for name, (before, after) in row.parts.items())
    cells = (
        row.key.taste,
        row.key.round,
        f"{row.key.votes} ({row.shown})",
        f"{row.key.flips:.0%}",
        f"{base.rate:.0%} → **{live.rate:.0%}**{parts}",
        f"{live.low:.0%}–{live.high:.0%}",
        f"{base.words:.1f} → {live.words:.1f}",
        f"{base.sensible:.1%} → {live.sensible:.1%}",
        f"{base.grammatical:.1%} → {live.grammatical:.1%}",
        f"{base.outside_handled:.0%} → {live.outside_handled:.0%}",
        f"{base.refused:.1%} → {live.refused:.1%}",
        f"{row.kl_per_token:.2f}",
        accuracy,
        f"{row.num_steps}/{row.planned_steps}",
        "passed" if row.passed else f"no: {row.reason}",
        f"{row.seconds:.0f} ({row.cpu_seconds:.0f})",
    )
    return markdown.line(*cells)


def settings_table(rows: Sequence[Row]) -> Iterator[str]:
    """Means over the tastes that each setting has; they are compared with the first one's settings."""
    columns = ("settings", "tastes", f"≥ {GOOD_RATE:.0%}", "live", "least", "sensible", "grammatical",
               "out of scope", "KL/token", "CPU-s", "rates")  # fmt: skip
    yield from markdown.head(*columns)
    first = rows[0].key.settings
    for settings in dict.fromkeys(row.key.settings for row in rows):
        yield _settings_line(_difference(first, settings), [r for r in rows if r.key.settings == settings])


def _settings_line(name: str, rows: Sequence[Row]) -> str:
    rates = [row.live.rate for row in rows]
    cells = (
        name,
        len(rows),
        sum(rate >= GOOD_RATE for rate in rates),
        f"{fmean(rates):.0%}",
        f"{min(rates):.0%}",
        f"{fmean(row.live.sensible - row.base.sensible for row in rows):+.1%}",
        f"{fmean(row.live.grammatical - row.base.grammatical for row in rows):+.1%}",
        f"{fmean(row.live.outside_handled - row.base.outside_handled for row in rows):+.0%}",
        f"{fmean(row.kl_per_token for row in rows):.2f}",
        f"{fmean(row.cpu_seconds for row in rows):.0f}",
        ", ".join(f"{row.key.taste} {row.live.rate:.0%}" for row in rows),
    )
    return markdown.line(*cells)


def _difference(first: str, other: str) -> str:
    """The settings of `other` that are not those of `first`."""
    before, after = json.loads(first), json.loads(other)
    changed = [f"{name} {value}" for name, value in after.items() if before.get(name) != value]
    return ", ".join(changed) or "as they are"


def _conditions(rows: Sequence[Row]) -> Iterator[str]:
    """Model, prompts and settings, so that a table says what it is of."""
    for name, found in (
        ("Weights", (row.key.model_sha256.removeprefix("sha256:")[:12] for row in rows)),
        ("evaluation", (f"{row.key.prompts} ({row.live.num_answers} answers)" for row in rows)),
        ("settings", (_brief(row.key.settings) for row in rows)),
    ):
        yield f"{name}: {'; '.join(_unique(found))}."


def _brief(settings: str) -> str:
    known = json.loads(settings)
    names = ("learning_rate", "epochs", "beta", "batch_size", "lora_rank", "sft_weight", "drift_budget")
    return ", ".join(f"{name} {known[name]}" for name in names if name in known)


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def _order(row: Row, rows: Sequence[Row]) -> tuple[int, int, float, int, str]:
    """Tastes in the order of their first row, then votes, flips, round."""
    tastes = _unique(other.key.taste for other in rows)
    return tastes.index(row.key.taste), row.key.votes, row.key.flips, row.key.round, row.key.settings


if __name__ == "__main__":
    main()
