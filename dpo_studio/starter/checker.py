"""Judge answers without a judge model: every sentence is looked up among those that the corpus can make.

A sentence that the generator can make belongs to the entities whose content it holds, or is garnish. A
sentence it cannot make is `novel`: it is given to the entity whose content words it shares most, and is
worth a look by eye. The checker knows nothing of fluency beyond that, and it is strict: one sentence on a
foreign topic makes an answer off topic.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dpo_studio.starter import phrases
from dpo_studio.starter.answers import capital, contract, fill, suits
from dpo_studio.starter.library import OUTSIDE, Entity, Topic
from dpo_studio.starter.phrases import Bank

_SENTENCE_END = re.compile(r"(?<=[.!?:])\s+|\n+")
_NOT_TEXT = re.compile(r"[^\w\s'.,!?:;-]+")
_WORD = re.compile(r"[a-z']+")
REGISTERS = ("neutral", "casual", "formal")
_OPENERS = (
    phrases.OPENER, phrases.TALK_OPENER, phrases.MOOD_OPENER, phrases.JOY_OPENER, phrases.STORY_OPENER,
    phrases.OUTSIDE_OPENER,
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What the checker found in one answer."""

    on_topic: bool
    owners: tuple[str, ...]
    novel: tuple[str, ...]
    invented: tuple[str, ...]
    looping: bool

    @property
    def is_grammatical(self) -> bool:
        """Whether every sentence is one of ours and none comes twice: a lower bound of what reads well."""
        return not (self.novel or self.invented or self.looping)


class Checker:
    """Holds all sentences of the corpus with their owners ("food/pasta", "outside"); garnish has none."""

    def __init__(self, topics: Iterable[Topic]) -> None:
        self._owners: dict[str, set[str]] = {}
        self._kinds: dict[str, set[str]] = {}
        for sentence in _garnish(topics):
            self._owners.setdefault(_normal(sentence), set())
        for owner, kind, sentence in _contents(topics):
            for one in _sentences(sentence):
                self._owners.setdefault(one, set()).add(owner)
                self._kinds.setdefault(one, set()).add(kind)
        self._openers = {_normal(text) for _, text in _all_of(*_OPENERS)}
        self._words = {word for sentence in self._owners for word in _WORD.findall(sentence)}
        self._bags = self._bags_of_words()

    def judge(self, answer: str, accept: Iterable[str]) -> Verdict:
        """Check one answer against the owners that are right for its prompt."""
        accepted = set(accept)
        sentences = _sentences(answer)
        novel = tuple(one for one in sentences if one not in self._owners and not outside_offer(one))
        owners = [found for one in sentences if (found := self._owners_of(one))]
        return Verdict(
            on_topic=bool(owners) and all(found & accepted for found in owners),
            owners=tuple(sorted({min(found & accepted or found) for found in owners})),
            novel=novel,
            invented=tuple(
                word for one in sentences for word in _WORD.findall(one) if word not in self._words
            ),
            looping=len(set(sentences)) < len(sentences) or _repeats(sentences),
        )

    def has_kind(self, answer: str, kind: str) -> bool:
        """Whether a sentence of the answer is of this kind ("why", "example", "point")."""
        return any(kind in self._kinds.get(one, ()) for one in _sentences(answer))

    def opens_with_a_phrase(self, answer: str) -> bool:
        """Whether the answer begins with one of the opening phrases ("Sure.", "Certainly.")."""
        sentences = _sentences(answer)
        return bool(sentences) and sentences[0] in self._openers

    def _owners_of(self, sentence: str) -> set[str]:
        if sentence in self._owners:
            return self._owners[sentence]
        if outside_offer(sentence):
            return {OUTSIDE}
        words = set(_WORD.findall(sentence))
        best = max(self._bags, key=lambda owner: _overlap(words, self._bags[owner]))
        return {best} if _overlap(words, self._bags[best]) > 0 else set()

    def _bags_of_words(self) -> dict[str, dict[str, float]]:
        bags: dict[str, set[str]] = {}
        for sentence, owners in self._owners.items():
            for owner in owners:
                bags.setdefault(owner, set()).update(_WORD.findall(sentence))
        spread = Counter(word for bag in bags.values() for word in bag)
        weight = {word: math.log(len(bags) / count) for word, count in spread.items()}
        return {owner: {word: weight[word] for word in bag} for owner, bag in bags.items()}


def owner_name(topic: Topic, entity: Entity) -> str:
    """How the checker names an entity: its topic and first key word."""
    return f"{topic.key}/{'stranger' if entity.is_stranger else entity.keys[0]}"


def _overlap(words: set[str], bag: dict[str, float]) -> float:
    return sum(bag.get(word, 0.0) for word in words)


def _sentences(text: str) -> list[str]:
    lines = (re.sub(r"^\s*(?:-|\d\.) ", "", line) for line in text.split("\n"))
    parts = (part for line in lines for part in _SENTENCE_END.split(line))
    return [normal for part in parts if (normal := _normal(part))]


def _normal(sentence: str) -> str:
    return _NOT_TEXT.sub("", sentence).strip(" .!?:").lower()


def _repeats(sentences: list[str]) -> bool:
    """Whether a run of four words stands twice in one answer's content."""
    words = [word for one in sentences for word in [*_WORD.findall(one), "|"]]
    runs = Counter(tuple(words[at : at + 6]) for at in range(len(words) - 5) if "|" not in words[at : at + 6])
    return any(count > 1 for count in runs.values())


def _all_of(*banks: Bank) -> Iterator[tuple[str, str]]:
    for bank in banks:
        for register in REGISTERS:
            yield from ((register, frame) for frame in bank.get(register, ()))


def _garnish(topics: Iterable[Topic]) -> Iterator[str]:
    plain = (
        *_OPENERS, phrases.LIST_INTRO, phrases.LIST_INTRO_HEDGED, phrases.LIST_INTRO_STATEMENT,
        phrases.LIST_INTRO_STATEMENT_HEDGED, phrases.WARM_FIRST, phrases.MOOD_WARM_FIRST, phrases.WARM,
        phrases.LEAD, phrases.HEDGE_TAIL, phrases.HEDGED_COURTESY, phrases.STORY_LEAD, phrases.STORY_HEDGE,
    )  # fmt: skip
    for _, text in _all_of(*plain):
        yield from _sentences(text)
    for text in phrases.UNKNOWN_STORY:
        yield from _sentences(text)
    for topic in topics:
        for warm in topic.warm.values():
            yield from warm
        yield from topic.questions


def _contents(topics: Iterable[Topic]) -> Iterator[tuple[str, str, str]]:
    for topic in topics:
        for entity in topic.entities:
            owner = owner_name(topic, entity)
            for kind, text in _entity_sentences(entity):
                yield owner, kind, text
    yield from ((OUTSIDE, "point", text) for text in _outside_sentences())


def _entity_sentences(entity: Entity) -> Iterator[tuple[str, str]]:
    for point in entity.points:
        first = (phrases.IMPERATIVE, phrases.IMPERATIVE_HEDGED, phrases.ALSO, phrases.ALSO_HEDGED)
        other = (phrases.STATEMENT, phrases.STATEMENT_HEDGED, phrases.ALSO_STATEMENT)
        yield "point", point.text
        yield "point", contract(point.text)
        for register, frame in _all_of(*(first if point.imperative else other)):
            if suits(frame, point.text):
                yield "point", fill(frame, point.text, register)
    for why in entity.whys:
        for register, frame in (
            *_all_of(phrases.REASON, phrases.REASON_HEDGED),
            ("casual", "{P}."),
            ("neutral", "{P}."),
        ):
            yield "why", fill(frame, why, register)
    for example in entity.examples:
        for register, frame in _all_of(phrases.EXAMPLE):
            yield "example", fill(frame, example, register)
    yield from (("question", question) for question in entity.questions)
    yield from (("point", line) for lines in entity.story.values() for line in lines)


def _outside_sentences() -> Iterator[str]:
    for text in phrases.OUTSIDE_POINTS:
        for register, frame in _all_of(phrases.STATEMENT, phrases.STATEMENT_HEDGED):
            yield fill(frame, text, register)
    for offer in phrases.OUTSIDE_OFFERS:
        yield capital(offer.replace("{t}", "things like these"))
        yield contract(offer.replace("{t}", "things like these"))
    yield from (text for _, text in _all_of(phrases.OUTSIDE_WARM))
    yield from phrases.OUTSIDE_QUESTION
    yield from phrases.OUTSIDE_TOPICS
    yield from (f"For example, {text}." for text in phrases.OUTSIDE_EXAMPLES)


def outside_offer(sentence: str) -> bool:
    """Whether a sentence lists what the model can talk about; these combine too freely to be looked up."""
    return sum(topic in sentence for topic in phrases.OUTSIDE_TOPICS) >= 2
