"""Second turns: what people say after an answer ("shorter please", "why?"), and what answers it.

A second answer differs from the first one: it goes on with what has not been said yet, where there is
something left. `said` is the text of the answer before; what it holds is read off the text itself.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from dpo_studio.starter import answers
from dpo_studio.starter.library import Entity, Topic, read_lines
from dpo_studio.starter.style import Style

# Form is hardest to learn (a list, something longer), so it is asked for most.
KINDS = {
    "more": 0.22, "why": 0.14, "shorter": 0.18, "longer": 0.16, "example": 0.08, "list": 0.15, "thanks": 0.07,
}  # fmt: skip
_ALTERNATIVES = re.compile(r"\(([^()]*)\)")


def draw_kind(topic: Topic, entity: Entity, rng: random.Random) -> str:
    """What is asked for next; nothing that the entity has no answer to."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if topic.key == "stories" and kind in ("why", "example", "list"):
        return rng.choice(("more", "longer"))
    if not entity.examples and kind == "example":
        return "more"
    return "thanks" if kind == "list" and (entity.is_unsure or not topic.allows_lists) else kind


def suited(style: Style, kind: str) -> Style:
    """The style of a first answer that leaves the second turn something to do: a long one to be cut."""
    if kind == "shorter":
        return replace(style, points=max(style.points, 3))
    if kind == "longer":
        return replace(style, points=1, reason=False, example=False, warm=False)
    return replace(style, listed=False, points=min(style.points, 2)) if kind == "list" else style


def ask_for(kind: str, rng: random.Random) -> str:
    """One of the ways to say it: a line of the file, one of its alternatives drawn at each place."""
    line = rng.choice(_asks()[kind])
    drawn = _ALTERNATIVES.sub(lambda match: rng.choice(match.group(1).split("|")), line)
    return re.sub(r"\s+(?=[,?]|$)", "", re.sub(r"\s+", " ", drawn)).strip()


def react(kind: str, topic: Topic, entity: Entity, said: str, style: Style, rng: random.Random) -> str:
    """The answer to a second turn of this kind."""
    entity = _with_fresh(entity, said)
    used = [point.text for point in entity.points if _holds(said, point.text)]
    if kind == "why":
        return answers.compose_reason(topic, entity, style, rng)
    if kind == "example":
        return answers.compose_example(topic, entity, style, rng)
    if kind == "thanks":
        style = replace(style, points=min(style.points, 2), example=False, reason=False)
        return answers.compose(topic, entity, style, answers.pick_points(entity, style.points, rng), rng)
    if kind == "shorter":
        style = _shortened(style, is_framed=topic.key not in ("smalltalk", "stories"))
        same = [point for point in entity.points if point.text in used[:1]] or entity.points[:1]
        return answers.compose(topic, entity, style, same, rng)
    if kind == "list":
        style = replace(style, points=rng.choice((3, 4)), listed=True)
        known = [point for point in entity.points if point.text in used]
        rest = answers.pick_points(entity, style.points, rng, avoid=used)
        points = [*known, *(point for point in rest if point not in known)][: style.points]
        points.sort(key=entity.points.index)
        return answers.compose(topic, entity, style, points, rng)
    if kind == "longer":
        style = replace(style, points=4, reason=True, example=True)
    points = answers.pick_points(entity, style.points, rng, avoid=used) if entity.points else []
    return answers.compose(topic, entity, style, points, rng)


@cache
def _asks() -> dict[str, list[str]]:
    return read_lines("second_turns")


def _with_fresh(entity: Entity, said: str) -> Entity:
    """The entity without the reasons and examples that were given already, unless there are no others."""
    return replace(
        entity, whys=_unsaid(entity.whys, said) or entity.whys,
        examples=_unsaid(entity.examples, said) or entity.examples,
    )  # fmt: skip


def _unsaid(texts: Sequence[str], said: str) -> list[str]:
    return [text for text in texts if not _holds(said, text)]


def _holds(said: str, text: str) -> bool:
    low = said.lower()
    return text.lower() in low or answers.contract(text).lower() in low


def _shortened(style: Style, *, is_framed: bool) -> Style:
    """One bare point; where a register needs a sentence of its own instead of a frame, it goes as well."""
    return replace(
        style, points=1, register=style.register if is_framed else "neutral", reason=False, example=False,
        listed=False, warm=False, question=False, opener=False, hedged=style.hedged and is_framed,
    )  # fmt: skip
