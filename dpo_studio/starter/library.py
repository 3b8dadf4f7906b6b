"""Read the topic files: which key words a prompt can carry and which content points answer it.

A topic file is plain text. Its head names the topic; `@group` starts a set of prompt templates (`{k}` is
the key word), `pre`/`post` hold fragments that stand before and after it in loose prompts; `= a, b` starts
an entity with its key words, and the lines below it hold the content:

    -      an imperative ("water it once a week")         *     a statement ("patience means ...")
    why:   a reason                                       eg:   a concrete example
    q:     a closing question                             ask:  a whole prompt that needs no template
    cue:   phrases that stand for the key word in loose prompts, where it is no noun
    begin/want/turn/end/short: the parts of a tiny story   unsure: the answer owns up to not knowing
    tone:  joy (good news wants no comfort) or courtesy (a greeting claims nothing that could be doubted)

Content lines carry no capitals at the start, no full stop, no hedge and no contraction: the style adds those.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

TOPICS = Path(__file__).resolve().parent / "topics"
TOPIC_NAMES = (
    "advice", "encouragement", "food", "gifts", "packing", "plants_pets", "smalltalk", "stories",
    "weekend", "words",
)  # fmt: skip


OUTSIDE = "outside"


@dataclass(frozen=True)
class Point:
    """One thing to say; `imperative` tells "water it" from "it needs water"."""

    text: str
    imperative: bool


@dataclass
class Entity:
    """What the corpus knows about one key word. An entity whose keys hold `{x}` stands for strangers."""

    keys: tuple[str, ...]
    templates: tuple[str, ...]
    group: str
    fragments: dict[str, list[str]] = field(default_factory=dict)
    cues: list[str] = field(default_factory=list)
    asks: list[str] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    whys: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    story: dict[str, list[str]] = field(default_factory=dict)
    is_unsure: bool = False
    """The answer owns up to not knowing, which makes a poor list."""
    tone: str = ""

    @property
    def is_stranger(self) -> bool:
        """Whether prompts name a word that the corpus holds no content for."""
        return any("{x}" in key for key in self.keys)


@dataclass
class Topic:
    """A topic file: its entities and the garnish that fits all of them."""

    key: str
    name: str = ""
    allows_lists: bool = True
    emoji: tuple[str, ...] = ()
    warm: dict[str, list[str]] = field(default_factory=lambda: {"neutral": [], "formal": [], "casual": []})
    questions: list[str] = field(default_factory=list)
    entities: list[Entity] = field(default_factory=list)


def read_topics() -> list[Topic]:
    """All topics, in the fixed order of their names."""
    return [_read_topic(name) for name in TOPIC_NAMES]


def subject_of(topic: Topic, entity: Entity) -> str:
    """The name of what an answer is about: topic, and first key word or the group of strangers."""
    return f"{topic.key}/{f'stranger:{entity.group}' if entity.is_stranger else entity.keys[0]}"


def read_slots(name: str) -> dict[str, list[str]]:
    """A file of `slot: value` lines; `ask` lines stay whole, others are split at commas or spaces."""
    return {
        slot: texts if slot == "ask" else [value for text in texts for value in _values(text)]
        for slot, texts in read_lines(name).items()
    }


def _values(text: str) -> list[str]:
    return [part.strip() for part in (text.split(",") if "," in text else text.split())]


def read_lines(name: str) -> dict[str, list[str]]:
    """A file of `kind: text` lines, by kind."""
    kinds: dict[str, list[str]] = {}
    for line in _lines(name):
        kind, _, text = line.partition(": ")
        kinds.setdefault(kind, []).append(text)
    return kinds


def _lines(name: str) -> list[str]:
    text = (TOPICS / f"{name}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def _read_topic(name: str) -> Topic:
    topic = Topic(key=name)
    group, templates, fragments = "", list[str](), dict[str, list[str]]()
    for line in _lines(name):
        if line.startswith("@group "):
            group, templates, fragments = line[7:], [], {}
        elif line.startswith(("pre: ", "post: ", "joined: ")):
            kind, _, rest = line.partition(": ")
            fragments.setdefault(kind, []).extend(part.strip() for part in rest.split(" | "))
        elif line.startswith("prompt: "):
            templates.append(line[8:])
        elif line.startswith("= "):
            keys = tuple(key.strip() for key in line[2:].split(","))
            topic.entities.append(
                Entity(keys=keys, templates=tuple(templates), group=group, fragments=fragments)
            )
        elif topic.entities:
            _add_content(topic.entities[-1], line)
        else:
            _add_head(topic, line)
    return topic


def _add_head(topic: Topic, line: str) -> None:
    kind, _, text = line.partition(": ")
    if kind == "name":
        topic.name = text
    elif kind == "emoji":
        topic.emoji = tuple(text.split())
    elif kind == "lists":
        topic.allows_lists = text != "no"
    elif kind == "question":
        topic.questions.append(text)
    elif kind.startswith("warm"):
        topic.warm[kind[5:] or "neutral"].append(text)
    elif kind != "topic":
        raise ValueError(f"{topic.key}: unknown head line {line!r}")


def _add_content(entity: Entity, line: str) -> None:
    if line[:2] in ("- ", "* "):
        entity.points.append(Point(line[2:], imperative=line[0] == "-"))
        return
    kind, _, text = line.partition(": ")
    lists = {"ask": entity.asks, "why": entity.whys, "eg": entity.examples, "q": entity.questions}
    if kind in lists:
        lists[kind].append(text)
    elif kind == "cue":
        entity.cues.extend(part.strip() for part in text.split(" | "))
    elif kind in ("begin", "want", "turn", "end", "short"):
        entity.story.setdefault(kind, []).append(text)
    elif kind == "unsure":
        entity.is_unsure = True
    elif kind == "tone":
        entity.tone = text
    else:
        raise ValueError(f"{entity.keys[0]}: unknown line {line!r}")
