"""Word differences between two answers.

Pure and plain: spans of text, no markup and no escaping, which belong to whoever draws them. What always
holds: the `same` and `removed` spans together are the first text, the `same` and `added` spans the second,
and neighbouring spans differ in kind.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

DiffKind = Literal["same", "removed", "added"]

# A word with its inner apostrophes and hyphens, a run of whitespace, or one other character.
_TOKEN = re.compile(r"\w+(?:['’\-]\w+)*|\s+|[^\w\s]")

_MAX_CELLS = 4_000_000
"""SequenceMatcher is quadratic at worst; above this many token pairs only the equal ends are matched."""


@dataclass(frozen=True, slots=True)
class DiffSpan:
    """A stretch of text that stayed, went or came."""

    kind: DiffKind
    text: str


def word_diff(a: str, b: str) -> tuple[DiffSpan, ...]:
    """The spans that turn `a` into `b`, in reading order; within a change, removed comes before added."""
    old, new = _TOKEN.findall(a), _TOKEN.findall(b)
    start = _common_start(old, new)
    end = _common_start(old[start:][::-1], new[start:][::-1])
    old_middle, new_middle = old[start : len(old) - end], new[start : len(new) - end]
    spans = [DiffSpan("same", "".join(old[:start]))]
    spans += _middle_spans(old_middle, new_middle)
    spans.append(DiffSpan("same", "".join(old[len(old) - end :])))
    return _merged(spans)


def _middle_spans(old: list[str], new: list[str]) -> list[DiffSpan]:
    if len(old) * len(new) > _MAX_CELLS:
        return [DiffSpan("removed", "".join(old)), DiffSpan("added", "".join(new))]
    spans = []
    # autojunk would treat frequent words as noise and tear long answers apart.
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            spans.append(DiffSpan("same", "".join(old[i1:i2])))
        else:
            spans += [DiffSpan("removed", "".join(old[i1:i2])), DiffSpan("added", "".join(new[j1:j2]))]
    return spans


def _merged(spans: Iterable[DiffSpan]) -> tuple[DiffSpan, ...]:
    """Without empty spans, and with neighbours of one kind joined."""
    merged: list[DiffSpan] = []
    for span in spans:
        if not span.text:
            continue
        if merged and merged[-1].kind == span.kind:
            span = DiffSpan(span.kind, merged.pop().text + span.text)
        merged.append(span)
    return tuple(merged)


def _common_start(a: list[str], b: list[str]) -> int:
    count = 0
    for left, right in zip(a, b, strict=False):
        if left != right:
            break
        count += 1
    return count
