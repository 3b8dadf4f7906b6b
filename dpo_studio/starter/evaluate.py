"""Measure the starter and write its sample sheet: `python -m dpo_studio.starter.evaluate`.

The prompts are hand-written and phrased unlike the corpus templates: `held_out_prompts.jsonl` was written by
someone who had not seen the corpus and was not looked at while the corpus was improved; `eval_prompts.jsonl`
was, and its failures were read, so its figures flatter. Figures come from `checker`; the whole sheet goes to
`docs/starter-samples.md`, because a figure nobody has read beside its samples is worth little.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from dpo_studio import tastes
from dpo_studio.starter import model_dir
from dpo_studio.starter.checker import Checker, Verdict, owner_name
from dpo_studio.starter.library import OUTSIDE, read_topics
from dpo_studio.starter.sampling import Sampler

_HERE = Path(__file__).resolve().parent
HELD_OUT = _HERE / "held_out_prompts.jsonl"
BRIEF_WORDS = 14  # one point in the longest frame; whoever is that brief already cannot be asked for less
Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class Item:
    """A hand-written prompt: its user turns, the entities that may answer, what a second turn asks for."""

    messages: tuple[str, ...]
    accept: tuple[str, ...]
    second: str = ""


@dataclass(frozen=True)
class Sample:
    """One answer with its verdict; `first` is the first answer of a two-turn conversation."""

    item: Item
    text: str
    ended: bool
    verdict: Verdict
    first: str = ""


def main() -> None:
    """Sample, judge, print the table, write the sheet."""
    parser = argparse.ArgumentParser(description="Sample sheet of the starter model.")
    parser.add_argument("--model", type=Path, default=model_dir())
    parser.add_argument("--out", type=Path, default=_HERE.parents[1] / "docs" / "starter-samples.md")
    parser.add_argument("--prompts", type=Path, default=HELD_OUT, help="hand-written prompts, JSON lines")
    parser.add_argument("--temperature", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    checker, sampler = Checker(read_topics()), Sampler(args.model)
    items = read_items(args.prompts)
    rounds = [run(items, sampler, checker, args.temperature) for _ in range(2)]
    table = figures(rounds[0], rounds[1], checker)
    args.out.write_text(sheet(table, rounds), encoding="utf-8")
    sys.stdout.write("\n".join(f"{name:44} {value}" for name, value in table) + f"\nsheet: {args.out}\n")


def read_items(path: Path = HELD_OUT) -> list[Item]:
    """Hand-written prompts in file order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Item(tuple(row["messages"]), tuple(row["accept"]), row.get("second", "")) for row in rows]


def run(items: Sequence[Item], sampler: Sampler, checker: Checker, temperature: float) -> list[Sample]:
    """One answer to every prompt; two-turn prompts get theirs after the model's own first answer."""
    firsts = sampler.answer([[("user", item.messages[0])] for item in items], temperature)
    double = [index for index, item in enumerate(items) if item.second]
    turns: list[Turns] = [
        [("user", items[i].messages[0]), ("assistant", firsts[i][0]), ("user", items[i].messages[1])]
        for i in double
    ]
    seconds = dict(zip(double, sampler.answer(turns, temperature), strict=True))
    samples = []
    for index, item in enumerate(items):
        text, ended = seconds.get(index, firsts[index])
        first = firsts[index][0] if item.second else ""
        samples.append(Sample(item, text, ended, checker.judge(text, _accepted(item)), first))
    return samples


def _accepted(item: Item) -> tuple[str, ...]:
    """What may answer; "another one" after a story is answered by any story."""
    is_story = any(owner.startswith("stories/") for owner in item.accept)
    return _all_stories() if item.second == "more" and is_story else item.accept


@cache
def _all_stories() -> tuple[str, ...]:
    return tuple(
        owner_name(topic, entity)
        for topic in read_topics()
        if topic.key == "stories"
        for entity in topic.entities
    )


def figures(samples: Sequence[Sample], again: Sequence[Sample], checker: Checker) -> list[tuple[str, str]]:
    """The table: names and values, both rounds of samples counted."""
    both = [*samples, *again]
    single = [s for s in both if not s.item.second]
    inside = [s for s in single if OUTSIDE not in s.item.accept]
    outside = [s for s in single if OUTSIDE in s.item.accept]
    double = [s for s in both if s.item.second]
    words = sum(len(s.text.split()) for s in both)
    rows = [
        ("prompts (answers)", f"{len(samples)} ({len(both)})"),
        ("on topic, strictly", _share([s.verdict.on_topic for s in inside])),
        ("out of scope handled", _share([s.verdict.on_topic for s in outside])),
        ("in-scope prompts refused", _share([OUTSIDE in s.verdict.owners for s in inside])),
        ("second turn as asked", _share([second_turn_ok(s, checker) for s in double])),
        *_by_kind(double, checker),
        ("ended by itself", _share([s.ended for s in both])),
        ("looping or repeating a clause", _share([s.verdict.looping for s in both])),
        ("grammatical, at least", _share([s.verdict.is_grammatical for s in both])),
        ("answers with an invented word", _share([bool(s.verdict.invented) for s in both])),
        ("invented words among all words", f"{sum(len(s.verdict.invented) for s in both) / words:.2%}"),
        ("answers with a novel sentence (read these)", _share([bool(s.verdict.novel) for s in both])),
        (
            "two samples differ",
            _share([_differ(a.text, b.text) for a, b in zip(samples, again, strict=True)]),
        ),
        ("mean words", f"{words / len(both):.1f}"),
    ]
    texts = [s.text for s in both]
    opened = sum(checker.opens_with_a_phrase(text) for text in texts) / len(texts)
    rows.append(("taste: opening phrase", f"{opened:.0%}"))
    return rows + [(f"taste: {name}", f"{tastes.measure(name, texts):.0%}") for name in tastes.taste_names()]


def _by_kind(double: Sequence[Sample], checker: Checker) -> list[tuple[str, str]]:
    kinds = sorted({s.item.second for s in double})
    return [
        (
            f"second turn: {kind}",
            _share([second_turn_ok(s, checker) for s in double if s.item.second == kind]),
        )
        for kind in kinds
    ]


def second_turn_ok(sample: Sample, checker: Checker) -> bool:
    """Whether the second answer does what the second turn asked for."""
    kind, words = sample.item.second, len(sample.text.split())
    if not sample.verdict.on_topic:
        return False
    if kind == "short":
        return words < max(len(sample.first.split()), BRIEF_WORDS + 1)
    if kind == "longer":
        return words > len(sample.first.split())
    if kind == "list":
        return tastes.get_taste("list").shows(sample.text)
    if kind in ("why", "example"):
        return checker.has_kind(sample.text, kind)
    return kind not in ("more", "story") or sample.text != sample.first


def sheet(table: Sequence[tuple[str, str]], rounds: Sequence[Sequence[Sample]]) -> str:
    """The whole sheet as Markdown; answers that the checker flags are marked."""
    lines = [
        "# Sample sheet of the starter model",
        "",
        "Made by `python -m dpo_studio.starter.evaluate`.",
        "",
    ]
    lines += ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in table), ""]
    for pair in zip(*rounds, strict=True):
        item = pair[0].item
        lines += [f"### {' → '.join(item.messages)}", ""]
        for sample in pair:
            flag = _flags(sample)
            first = f"_({sample.first.replace(chr(10), ' / ')})_ → " if sample.first else ""
            lines += [f"- {flag}{first}{sample.text.replace(chr(10), ' / ')}"]
        lines.append("")
    return "\n".join(lines) + "\n"


def _flags(sample: Sample) -> str:
    marks = [] if sample.verdict.on_topic else [f"OFF: {', '.join(sample.verdict.owners) or 'nothing'}"]
    marks += [f"novel: {'; '.join(sample.verdict.novel)}"] if sample.verdict.novel else []
    marks += ["repeats"] if sample.verdict.looping else []
    return f"**[{' · '.join(marks)}]** " if marks else ""


def _differ(a: str, b: str) -> bool:
    """Visibly: less than four fifths of the words in common."""
    left, right = set(re.findall(r"\w+", a.lower())), set(re.findall(r"\w+", b.lower()))
    return len(left & right) < 0.8 * max(len(left | right), 1)


def _share(flags: Sequence[bool]) -> str:
    return f"{sum(flags) / max(len(flags), 1):.1%} of {len(flags)}"


if __name__ == "__main__":
    main()
