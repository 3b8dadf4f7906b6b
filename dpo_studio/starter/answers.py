"""Turn content points and a style into the text of an answer.

Content is chosen before style and independently of it; a short answer keeps its content point and drops the
garnish only where the style says so.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from dpo_studio.starter import phrases
from dpo_studio.starter.library import Entity, Point, Topic
from dpo_studio.starter.phrases import Bank
from dpo_studio.starter.style import Style

_CONTRACTIONS = (
    ("do not", "don't"), ("does not", "doesn't"), ("did not", "didn't"), ("is not", "isn't"),
    ("are not", "aren't"),
    ("cannot", "can't"), ("it is", "it's"), ("I am", "I'm"), ("you are", "you're"), ("that is", "that's"),
    ("I will", "I'll"), ("they are", "they're"), ("I have", "I've"), ("you have", "you've"),
    ("will not", "won't"),
)  # fmt: skip
_CONTRACT = re.compile(
    r"\b("
    + "|".join(re.escape(long) for long, _ in _CONTRACTIONS)
    + r")\b(?! (?:and|or|but)\b)(?![.,!?\n]|$)"
)
_SHORT = dict(_CONTRACTIONS)
_OF_ME = re.compile(r"I(?: would|'d)(?: maybe)? \{p\}")
_OF_YOU = re.compile(r"\byou(?:r|rs|rself)?\b")


def pick_points(entity: Entity, count: int, rng: random.Random, avoid: Sequence[str] = ()) -> list[Point]:
    """Distinct points, those not in `avoid` first, in the order of the topic file.

    The fixed order lets a small model avoid repeating itself: it has only to go forward.
    """
    fresh = [point for point in entity.points if point.text not in avoid]
    pool = fresh or entity.points
    chosen = sorted(rng.sample(pool, min(count, len(pool))), key=pool.index)
    if (
        entity.group == "word" and not avoid and not entity.is_stranger
    ):  # the meaning comes before its garnish
        first = entity.points[0]
        return [first, *[point for point in chosen if point is not first][: count - 1]]
    return chosen


def compose(topic: Topic, entity: Entity, style: Style, points: Sequence[Point], rng: random.Random) -> str:
    """An answer that makes these points in this style."""
    if topic.key == "stories":
        return compose_story(topic, entity, style, rng)
    if entity.is_unsure:
        style, points = replace(style, listed=False), points[:2]
    head = _opening(style, rng, _opener_bank(topic, entity))
    warm_first = rng.random() < 0.5
    warm = _warm(topic, style, rng, first=warm_first)
    # Always before the points: with two places for it, a taste for examples taught both at once.
    example = "" if topic.key == "smalltalk" else _example(entity, style, rng)
    body = _body(topic, entity, style, points, rng)
    reason = _reason(entity, style, rng) if style.reason and entity.whys and style.points > 1 else ""
    parts = [head, warm if warm_first else "", example, body, reason, "" if warm_first else warm]
    return _finish(parts, _question(topic, entity, style, rng), topic.emoji, style, rng)


def compose_reason(topic: Topic, entity: Entity, style: Style, rng: random.Random) -> str:
    """The answer to "why?"."""
    parts = [_opening(style, rng, _opener_bank(topic, entity)), _reason(entity, style, rng)]
    if style.warm:
        parts.append(_warm(topic, style, rng))
    return _finish(parts, _question(topic, entity, style, rng), topic.emoji, style, rng)


def compose_example(topic: Topic, entity: Entity, style: Style, rng: random.Random) -> str:
    """The answer to "for example?"."""
    frame = rng.choice(phrases.EXAMPLE[style.register])
    parts = [
        _opening(style, rng, _opener_bank(topic, entity)),
        fill(frame, rng.choice(entity.examples), style.register),
    ]
    if style.warm:
        parts.append(_warm(topic, style, rng))
    return _finish(parts, _question(topic, entity, style, rng), topic.emoji, style, rng)


def compose_story(topic: Topic, entity: Entity, style: Style, rng: random.Random) -> str:
    """A tiny story: one sentence, or its four parts; example and list do not apply."""
    parts = [_opening(style, rng, _opener_bank(topic, entity))]
    is_long = style.points > 1
    if style.register != "neutral" or (is_long and rng.random() < 0.3):
        parts.append(rng.choice(phrases.STORY_LEAD[style.register]))
    if style.hedged:
        parts.append(rng.choice(phrases.STORY_HEDGE[style.register]))
    if entity.is_stranger and is_long and rng.random() < 0.7:
        parts.append(rng.choice(phrases.UNKNOWN_STORY))
    if is_long:
        lines = [rng.choice(entity.story[part]) for part in ("begin", "want", "turn", "end")]
    else:
        lines = [rng.choice(entity.story["short"])]
    if style.points == 4 and len(entity.story["end"]) > 1:
        lines.append(next(line for line in entity.story["end"] if line != lines[-1]))
    parts += [f"{capital(line)}." for line in lines]
    if style.warm:
        parts.append(_warm(topic, style, rng))
    return _finish(parts, _question(topic, entity, style, rng), topic.emoji, style, rng)


def compose_outside(style: Style, rng: random.Random) -> str:
    """A graceful "not my field" with what the model can talk about, in any style."""
    point = rng.choice(phrases.OUTSIDE_POINTS)
    named = sorted(rng.sample(phrases.OUTSIDE_TOPICS, style.points + 1), key=phrases.OUTSIDE_TOPICS.index)
    offer = rng.choice(phrases.OUTSIDE_OFFERS)
    frames = phrases.STATEMENT_HEDGED if style.hedged else phrases.STATEMENT
    parts = [_opening(style, rng, phrases.OUTSIDE_OPENER)]
    parts.append(fill(rng.choice(frames[style.register]), point, style.register))
    if style.listed:
        parts.append(capital(offer.replace("{t}", "things like these")) + ":\n" + _bullets(named, rng))
    else:
        parts.append(fill("{P}.", offer.replace("{t}", _enumerate(named)), style.register))
    if style.example:
        parts.append(fill("For example, {p}.", rng.choice(phrases.OUTSIDE_EXAMPLES), style.register))
    if style.warm:
        parts.append(rng.choice(phrases.OUTSIDE_WARM[style.register]))
    question = rng.choice(phrases.OUTSIDE_QUESTION) if style.question else ""
    return _finish(parts, question, ("🙂", "🌱", "🎈", "😊"), style, rng)


def fill(frame: str, text: str, register: str) -> str:
    """Put a point into a frame; casual speech contracts."""
    text = contract(text) if register == "casual" else text
    return frame.replace("{P}", capital(text)).replace("{p}", text)


def contract(text: str) -> str:
    """Turn "do not" into "don't", as casual speech does, but never before a stop ("who you are")."""
    return _CONTRACT.sub(lambda match: _SHORT[match.group(1)], text)


def capital(text: str) -> str:
    """The first letter as a capital."""
    return text[:1].upper() + text[1:]


def _opening(style: Style, rng: random.Random, bank: Bank) -> str:
    return rng.choice(bank[style.register]) if style.opener else ""


def _opener_bank(topic: Topic, entity: Entity) -> Bank:
    own = {
        "smalltalk": phrases.TALK_OPENER,
        "encouragement": phrases.JOY_OPENER if entity.tone == "joy" else phrases.MOOD_OPENER,
        "stories": phrases.STORY_OPENER,
    }
    return own.get(topic.key, phrases.OPENER)


def _warm(topic: Topic, style: Style, rng: random.Random, *, first: bool = False) -> str:
    if not style.warm:
        return ""
    is_comfort = topic.key == "encouragement"
    if first:
        return rng.choice((phrases.MOOD_WARM_FIRST if is_comfort else phrases.WARM_FIRST)[style.register])
    own = topic.warm[style.register] * (4 if style.register != "neutral" else 2)
    return rng.choice(own if is_comfort else (*own, *phrases.WARM[style.register]))


def _example(entity: Entity, style: Style, rng: random.Random) -> str:
    if not style.example or not entity.examples:
        return ""
    return fill(rng.choice(phrases.EXAMPLE[style.register]), rng.choice(entity.examples), style.register)


def _reason(entity: Entity, style: Style, rng: random.Random) -> str:
    bank = phrases.REASON_HEDGED if style.hedged else phrases.REASON
    return fill(rng.choice(bank[style.register]), rng.choice(entity.whys), style.register)


def _question(topic: Topic, entity: Entity, style: Style, rng: random.Random) -> str:
    if not style.question:
        return ""
    return rng.choice(entity.questions if entity.questions and rng.random() < 0.6 else topic.questions)


def _body(topic: Topic, entity: Entity, style: Style, points: Sequence[Point], rng: random.Random) -> str:
    if topic.key == "smalltalk":
        return _talk(entity, style, points, rng)
    if style.listed and len(points) > 1 and topic.allows_lists:
        intro = _intro_bank(points, style)[style.register]
        lead = (
            rng.choice(intro) + "\n"
            if style.register == "formal" or style.hedged or rng.random() < 0.7
            else ""
        )
        texts = [contract(point.text) if style.register == "casual" else point.text for point in points]
        return lead + _bullets(texts, rng)
    frames = _frames(points, style, rng)
    return " ".join(
        fill(frame, point.text, style.register) for frame, point in zip(frames, points, strict=True)
    )


def _intro_bank(points: Sequence[Point], style: Style) -> Bank:
    if all(point.imperative for point in points):
        return phrases.LIST_INTRO_HEDGED if style.hedged else phrases.LIST_INTRO
    return phrases.LIST_INTRO_STATEMENT_HEDGED if style.hedged else phrases.LIST_INTRO_STATEMENT


def _frames(points: Sequence[Point], style: Style, rng: random.Random) -> list[str]:
    """One frame a point, none twice in an answer; not every sentence needs one."""
    first = [frame for frame in _first_bank(points[0], style)[style.register] if suits(frame, points[0].text)]
    frames = [rng.choice(first)]
    for point in points[1:]:
        unused = [frame for frame in _later_bank(point, style)[style.register] if frame not in frames]
        frames.append("{P}." if not unused or rng.random() < 0.35 else rng.choice(unused))
    return frames


def suits(frame: str, text: str) -> bool:
    """Whether the point can stand in the frame: "I would talk to yourself" is no English."""
    return not (_OF_ME.match(frame) and _OF_YOU.search(text))


def _first_bank(point: Point, style: Style) -> Bank:
    if point.imperative:
        return phrases.IMPERATIVE_HEDGED if style.hedged else phrases.IMPERATIVE
    return phrases.STATEMENT_HEDGED if style.hedged else phrases.STATEMENT


def _later_bank(point: Point, style: Style) -> Bank:
    if point.imperative:
        return phrases.ALSO_HEDGED if style.hedged else phrases.ALSO
    return phrases.ALSO_STATEMENT


def _talk(entity: Entity, style: Style, points: Sequence[Point], rng: random.Random) -> str:
    sentences = [fill("{P}.", point.text, style.register) for point in points[:3]]
    if not style.opener and (
        style.register == "formal" or (style.register == "casual" and rng.random() < 0.6)
    ):
        sentences.insert(0, rng.choice(phrases.LEAD[style.register]))
    if style.hedged:
        bank = phrases.HEDGED_COURTESY if entity.tone == "courtesy" else phrases.HEDGE_TAIL
        sentences.append(rng.choice(bank[style.register]))
    return " ".join(sentences)


def _bullets(texts: Sequence[str], rng: random.Random) -> str:
    if rng.random() < 0.3:
        return "\n".join(f"{number}. {capital(text)}" for number, text in enumerate(texts, 1))
    return "\n".join(f"- {capital(text)}" for text in texts)


def _enumerate(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def _finish(
    parts: Sequence[str], question: str, emoji: Sequence[str], style: Style, rng: random.Random
) -> str:
    kept = [part for part in parts if part]
    if style.emoji and rng.random() < 0.35:
        kept[0] = _with_emoji(kept[0], rng.choice(emoji))
    elif style.emoji:
        kept[-1] = _with_emoji(kept[-1], rng.choice(emoji))
    if question:
        kept.append(question)
    return _join(kept)


def _with_emoji(text: str, emoji: str) -> str:
    return f"{text}\n\n{emoji}" if _ends_in_list(text) else f"{text} {emoji}"


def _join(parts: Sequence[str]) -> str:
    """Sentences with spaces; a list begins on its own line and ends with an empty one, as Markdown asks."""
    text = parts[0]
    for part in parts[1:]:
        text += "\n\n" if _ends_in_list(text) else "\n" if _has_list(part) else " "
        text += part
    return text


def _has_list(text: str) -> bool:
    return re.search(r"^(- |\d\. )", text, re.MULTILINE) is not None


def _ends_in_list(text: str) -> bool:
    return re.match(r"(- |\d\. )", text.rsplit("\n", 1)[-1]) is not None
