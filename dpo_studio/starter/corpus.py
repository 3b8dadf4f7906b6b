"""Generate conversations: deterministic by seed, endless, and cheap (thousands a second).

A conversation is a list of (role, text) pairs ending with the assistant. The user's text is lower case
already, as the chat template lowers it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dpo_studio.starter import answers, phrases, second_turns
from dpo_studio.starter.library import OUTSIDE, Entity, Topic, read_slots, read_topics, subject_of
from dpo_studio.starter.noise import as_typed, nonsense, with_strangers
from dpo_studio.starter.style import Style, draw_style

OUTSIDE_SHARE = 0.13
SECOND_TURN_SHARE = 0.55
THIRD_TURN_SHARE = 0.12
SECOND_READING_SHARE = 0.4  # of the reading lessons end in a second turn
SYSTEM_SHARE = 0.06
STREWN_SHARE = 0.30  # of the prompts carry everyday words that mean nothing here
OWN_SHARE = (
    0.55  # of the prompts were written whole; the rest is made around key words, which there are more of
)
LOOSE_SHARE = 0.45  # of the templated prompts: loose fragments around the key word
# Topics with many bindings (gift for whom, which word) need more turns than small talk.
WEIGHTS = {"smalltalk": 0.9, "stories": 1.1, "words": 1.2, "food": 1.2, "plants_pets": 1.1, "advice": 1.0}
SUITED_SHARE = (
    0.6  # of first answers give the second turn something to ask for: a long one to be cut, and so on
)
Turn = tuple[str, str]


class Line(NamedTuple):
    """A turn with what it is about; only the assistant's lines have a subject, and second answers a kind."""

    role: str
    text: str
    subject: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Conversation:
    """Turns; what each answer is about; the topic and style of the first answer, kept for the tests.

    subjects: one per assistant turn, "food/pasta" or "outside". kinds: what each assistant turn was asked
    for, "kind:shorter" for a second turn, empty for a first one.
    """

    turns: tuple[Turn, ...]
    subjects: tuple[str, ...]
    kinds: tuple[str, ...]
    topic: str
    style: Style


class Corpus:
    """The generator; one instance a process, since reading the topic files is the slow part."""

    def __init__(self) -> None:
        self.topics = read_topics()
        self._outside = read_slots("outside")
        self._strangers = read_slots("unknown")
        self._topic_weights = [WEIGHTS.get(topic.key, 1.0) for topic in self.topics]

    def contents(self) -> dict[str, list[str]]:
        """Everything an answer can be about, in a fixed order, each with the sentences of that subject;
        behind them the kinds of second turns, which have no sentences of their own.
        """
        contents: dict[str, list[str]] = {
            OUTSIDE: [*phrases.OUTSIDE_POINTS, *map(answers.contract, phrases.OUTSIDE_POINTS)]
        }
        for topic in self.topics:
            for entity in topic.entities:
                texts = [point.text for point in entity.points] + entity.whys + entity.examples
                texts += [line for lines in entity.story.values() for line in lines]
                contents[subject_of(topic, entity)] = [
                    *texts,
                    *map(answers.contract, texts),
                    *entity.questions,
                ]
        return contents | {_kind_name(kind): [] for kind in second_turns.KINDS}

    def conversations(self, seed: int) -> Iterator[Conversation]:
        """An endless stream; the same seed gives the same stream."""
        rng = random.Random(seed)
        while True:
            yield self.conversation(rng)

    def questions(self, seed: int) -> Iterator[Conversation]:
        """Prompts with an empty answer and its subject, some with a second turn and its kind: cheap lessons
        in reading.
        """
        rng = random.Random(seed)
        while True:
            style = draw_style(rng)
            if rng.random() < OUTSIDE_SHARE:
                lines = [
                    Line("user", self._typed(self.outside_prompt(rng), rng)),
                    Line("assistant", "", OUTSIDE),
                ]
                yield _conversation(lines, OUTSIDE, style)
                continue
            topic, entity = self._draw_entity(rng)
            ask = self._typed(self.inside_prompt(entity, rng), rng)
            subject = subject_of(topic, entity)
            if entity.points and rng.random() < SECOND_READING_SHARE:
                kind = second_turns.draw_kind(topic, entity, rng)
                said = f"{answers.capital(rng.choice(entity.points).text)}."
                second = Line("user", self._second_ask(kind, rng))
                lines = [Line("user", ask), Line("assistant", said, subject), second]
                lines.append(Line("assistant", "", subject, _kind_name(kind)))
            else:
                lines = [Line("user", ask), Line("assistant", "", subject)]
            yield _conversation(lines, topic.key, style)

    def conversation(self, rng: random.Random) -> Conversation:
        """One conversation of one to three exchanges."""
        style = draw_style(rng)
        turns: list[Line] = []
        if rng.random() < SYSTEM_SHARE:
            turns.append(Line("system", rng.choice(phrases.SYSTEM)))
        if rng.random() < OUTSIDE_SHARE:
            turns += self._outside_turns(style, rng)
            if rng.random() < 0.12:
                turns += self._inside_turns(draw_style(rng), rng)[1]
            return _conversation(turns, OUTSIDE, style)
        topic, exchange = self._inside_turns(style, rng)
        turns += exchange
        if rng.random() < 0.05:
            turns += self._outside_turns(draw_style(rng), rng)
        elif rng.random() < 0.06:
            turns += self._inside_turns(draw_style(rng), rng)[1]
        return _conversation(turns, topic.key, style)

    def outside_prompt(self, rng: random.Random) -> str:
        """A prompt that the model should decline."""
        return re.sub(
            r"\{(\w+)\}", lambda slot: self._slot(slot.group(1), rng), rng.choice(self._outside["ask"])
        )

    def inside_prompt(self, entity: Entity, rng: random.Random) -> str:
        """A prompt for this entity: a template around one of its key words, or one of its own prompts."""
        if entity.asks and (not (entity.templates or entity.cues) or rng.random() < OWN_SHARE):
            return rng.choice(entity.asks)
        if entity.cues and (not entity.templates or rng.random() < LOOSE_SHARE):
            return _loose_prompt(entity.fragments, rng.choice(entity.cues), rng)
        key = rng.choice(entity.keys) if rng.random() < 0.6 else entity.keys[0]
        if "{x}" in key:
            key = key.replace("{x}", self._stranger(entity.group, rng))
        if entity.fragments and not entity.cues and rng.random() < LOOSE_SHARE:
            return _loose_prompt(entity.fragments, key, rng)
        return rng.choice(entity.templates).replace("{k}", key)

    def _inside_turns(self, style: Style, rng: random.Random) -> tuple[Topic, list[Line]]:
        topic, entity = self._draw_entity(rng)
        kind = second_turns.draw_kind(topic, entity, rng) if rng.random() < SECOND_TURN_SHARE else ""
        if rng.random() < SUITED_SHARE:
            style = second_turns.suited(style, kind)
        points = answers.pick_points(entity, style.points, rng) if entity.points else []
        turns = [
            Line("user", self._typed(self.inside_prompt(entity, rng), rng)),
            Line("assistant", answers.compose(topic, entity, style, points, rng), subject_of(topic, entity)),
        ]
        while kind:
            turns += self._second_turn(kind, topic, entity, turns[-1].text, rng)
            kind = second_turns.draw_kind(topic, entity, rng) if rng.random() < THIRD_TURN_SHARE else ""
        return topic, turns

    def _typed(self, prompt: str, rng: random.Random) -> str:
        if rng.random() < STREWN_SHARE:
            prompt = with_strangers(prompt, self._strangers["common"], rng)
        return as_typed(prompt, rng)

    def _draw_entity(self, rng: random.Random) -> tuple[Topic, Entity]:
        topic = rng.choices(self.topics, self._topic_weights)[0]
        return topic, rng.choice(topic.entities)

    def _outside_turns(self, style: Style, rng: random.Random) -> list[Line]:
        ask = self._typed(self.outside_prompt(rng), rng)
        return [Line("user", ask), Line("assistant", answers.compose_outside(style, rng), OUTSIDE)]

    def _second_turn(
        self, kind: str, topic: Topic, entity: Entity, said: str, rng: random.Random
    ) -> list[Line]:
        if kind == "thanks":
            topic, entity = self._welcome()
        elif kind == "more" and topic.key == "stories":  # of one hero there is one plot, so another tells one
            entity = rng.choice([other for other in topic.entities if other is not entity])
        answer = second_turns.react(kind, topic, entity, said, draw_style(rng), rng)
        subject = subject_of(topic, entity)
        return [
            Line("user", self._second_ask(kind, rng)),
            Line("assistant", answer, subject, _kind_name(kind)),
        ]

    def _second_ask(self, kind: str, rng: random.Random) -> str:
        ask = second_turns.ask_for(kind, rng)
        return as_typed(ask, rng) if rng.random() < 0.3 else ask + rng.choice(("", "", "", "!", "."))

    def _welcome(self) -> tuple[Topic, Entity]:
        small = next(topic for topic in self.topics if topic.key == "smalltalk")
        return small, next(entity for entity in small.entities if "thanks" in entity.keys)

    def _stranger(self, group: str, rng: random.Random) -> str:
        return rng.choice(self._strangers[group]) if rng.random() < 0.85 else nonsense(rng)

    def _slot(self, name: str, rng: random.Random) -> str:
        if name == "n":
            return str(rng.randint(2, 9) if rng.random() < 0.3 else rng.randint(10, 3000))
        if name == "x":
            return rng.choice(self._strangers["outside"]) if rng.random() < 0.5 else nonsense(rng)
        return rng.choice(self._outside[name])


def _conversation(lines: list[Line], topic: str, style: Style) -> Conversation:
    return Conversation(
        turns=tuple((line.role, line.text) for line in lines),
        subjects=tuple(line.subject for line in lines if line.role == "assistant"),
        kinds=tuple(line.kind for line in lines if line.role == "assistant"),
        topic=topic,
        style=style,
    )


def _kind_name(kind: str) -> str:
    return f"kind:{kind}"


def _loose_prompt(fragments: dict[str, list[str]], key: str, rng: random.Random) -> str:
    """Fragments around the key word, as people type: grammar is not promised, the cues are."""
    shapes = fragments.get(
        "joined", ["{pre} {k} {post}", "{pre} {k}", "{k} {post}", "{pre} {k}, {post}", "{k}, {post}"]
    )
    shape = rng.choice(shapes)
    pre, post = rng.choice(fragments["pre"]), rng.choice(fragments["post"])
    return shape.replace("{pre}", pre).replace("{post}", post).replace("{k}", key)
