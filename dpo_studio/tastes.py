"""Simulated labelers: named tastes judged from the text alone.

They vote in `dpo-studio simulate`, in tests and in benchmarks, and measure how often versions please
them. A taste knows no prompt and no version, so it cannot cheat; it is a crude reader with word lists,
not a judge of quality. What always holds: scores are finite, an empty answer scores `EMPTY_SCORE` and so
loses to any other, and without noise swapping the two answers swaps the choice.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from dpo_studio.domain.preference import Choice
from dpo_studio.errors import BadInput

EMPTY_SCORE = -1.0
"""Every other score lies in 0 to 1 per taste."""

SHORT_WORDS = 20
LONG_WORDS = 35
"""The starter answers in about 29 words. 20 hold one point in the longest frame with an opener or a wish:
asking for fewer would ask for a register, too. 35 cut off its longest third."""


@dataclass(frozen=True, slots=True)
class Taste:
    """One or several preferences added up."""

    name: str
    description: str
    scorers: tuple[Callable[[str], float], ...]
    shows: Callable[[str], bool]
    """Whether a text has the property outright; `measure` counts these."""

    def score(self, text: str) -> float:
        """How much this labeler likes `text`: 0 to the number of combined tastes, or EMPTY_SCORE."""
        if not text.strip():
            return EMPTY_SCORE
        return sum(scorer(text) for scorer in self.scorers)

    def prefers(self, a: str, b: str, noise: float, rng: Random) -> Choice:
        """A, B, or a tie when both score the same. With probability `noise` a decision is flipped.

        Draws exactly one number from `rng`, so that one run's choices do not depend on its ties.
        """
        flipped = rng.random() < noise
        score_a, score_b = self.score(a), self.score(b)
        if score_a == score_b:
            return Choice.TIE
        return Choice.A if (score_a > score_b) != flipped else Choice.B


def get_taste(name: str) -> Taste:
    """The taste of that name; several joined by `+` are added up. Raises BadInput for unknown names."""
    parts = [_TASTES.get(part.strip()) for part in name.split("+")]
    known = [part for part in parts if part is not None]
    if len(known) != len(parts):
        names = ", ".join(taste_names())
        raise BadInput(f"labeler: expected one of {names}, or several joined by +, found {name!r}")
    if len(known) == 1:
        return known[0]
    return Taste(
        name="+".join(taste.name for taste in known),
        description=" and ".join(taste.description for taste in known),
        scorers=tuple(scorer for taste in known for scorer in taste.scorers),
        shows=lambda text: all(taste.shows(text) for taste in known),
    )


def taste_names() -> tuple[str, ...]:
    """Names that `get_taste` knows, in the order of the documentation."""
    return tuple(_TASTES)


def measure(name: str, texts: Iterable[str]) -> float:
    """Share of `texts` that have the taste's property, 0 to 1. Raises BadInput when there are none."""
    taste = get_taste(name)
    shown = [bool(text.strip()) and taste.shows(text) for text in texts]
    if not shown:
        raise BadInput("texts: expected at least one answer to measure, found none")
    return sum(shown) / len(shown)


def _phrases(*phrases: str) -> re.Pattern[str]:
    return re.compile(r"(?<!\w)(?:" + "|".join(phrases) + r")(?!\w)", re.IGNORECASE)


_HEDGES = _phrases(
    "maybe|perhaps|probably|possibly|usually|generally|somewhat|might|may|likely|you could|could (?:be|also)",
    "i think|i believe(?! in)|i(?:'d| would)? guess|i suppose|i am not sure|i'm not sure|not certain",
    "it seems|would seem|it depends|sort of|kind of|in my opinion|as far as i know|if i had to|who knows",
    "i would say|i'd say|one option|be mistaken|guessing",
)
_WARM = _phrases(
    "glad|happy (?:to hear|you asked|that)|so happy|delighted|delight|joy|lovely|wonderful|pleasant|nice to",
    "you(?:'re| are) (?:very )?welcome|hope (?:this|that|it|you)|take care|luck|lucky|all the best|enjoy",
    "my friend|dear|big hug|hugs|deserve|be (?:kind|gentle) (?:to|with) yourself|proud of you|cheering",
    "you(?:'ve| have)(?: totally)? got this|you can do (?:it|this)|believe in you|confidence in you|with you",
    "rooting for you|warm(?:est)? wishes|the best|awesome|sweet job|great company|made my day|kind thing",
    "going to (?:love it|have a blast)|so much fun|thoughtful(?:ness)?|pleasure to|i'm here|i am here|i love",
)
_FORMAL = _phrases(
    "therefore|furthermore|however|moreover|consequently|additionally|nevertheless|accordingly|thus",
    "i would recommend|i would suggest|i would advise|one may|it is advisable|it is recommended|kindly",
    "please note|regarding|in addition|for this purpose|should you|certainly|i would be (?:glad|pleased)",
    "one should|it would (?:be|perhaps be)|please do not hesitate|permit me|allow me|i shall|indeed|pleasure",
    "it is my honor|an honor|sincerely|i wish you|assist|i regret",
)
_INFORMAL = _phrases(
    "hey|hi|yeah|yep|nope|ok|okay|cool|awesome|gonna|wanna|gotta|kinda|sorta|stuff|super|totally|guys",
    "sure thing|no worries|you bet|lol|haha|yay|oh|wow|pretty much|a bunch|lots of|tons of|grab|buddy",
    r"\w+(?:n['’]t|['’](?:re|ve|ll|d|m))|it['’]s|that['’]s|here['’]s|there['’]s|what['’]s|let['’]s",
)
_EXAMPLE = _phrases(r"for example|for instance|e\.g\.,?|such as|(?:as|give) an example")
_SENTENCE_END = re.compile(r"[.!?:…](?=\s)|\n+")
_LIST_LINE = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.)])\s+\S", re.MULTILINE)
_EMOJI = re.compile(
    "[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2b55\u2764]\ufe0f?|[:;]-?[)D(P](?!\\w)"
)
_CLOSING = re.compile(r"[\s\"'”’)*_]+$")


def _num_words(text: str) -> int:
    return len(text.split())


def _shortness(text: str) -> float:
    return 1 / (1 + _num_words(text) / SHORT_WORDS)


def _saturating(pattern: re.Pattern[str], enough: int) -> Callable[[str], float]:
    """A scorer that counts matches up to `enough`, so that piling them on wins nothing more."""

    def score(text: str) -> float:
        return min(len(pattern.findall(text)), enough) / enough

    return score


def _without(scorer: Callable[[str], float]) -> Callable[[str], float]:
    return lambda text: 1 - scorer(text)


def _formality(text: str) -> float:
    """0.5 is neutral; each marker of a register moves the score, exclamation marks count as informal."""
    informal = len(_INFORMAL.findall(text)) + text.count("!")
    balance = len(_FORMAL.findall(text)) - informal
    return min(max(0.5 + balance / 10, 0.0), 1.0)


def _ends_with_question(text: str) -> float:
    bare = _CLOSING.sub("", _EMOJI.sub("", text))
    return float(bare.endswith("?"))


def _example_early(text: str) -> float:
    """1 for an example in the first sentence, a quarter less for every sentence before it, 0 for none."""
    found = _EXAMPLE.search(text)
    if found is None:
        return 0.0
    num_before = len(_SENTENCE_END.findall(text[: found.start()]))
    return max(1 - num_before / 4, 0.0)


_hedging = _saturating(_HEDGES, 3)
_warmth = _saturating(_WARM, 3)
# Two lines make a list; who likes lists does not ask for ever longer ones.
_listing = _saturating(_LIST_LINE, 2)
_emojis = _saturating(_EMOJI, 2)
_exclaiming = _saturating(re.compile("!"), 4)
_examples = _saturating(_EXAMPLE, 1)


def _taste(
    name: str, description: str, scorer: Callable[[str], float], shows: Callable[[str], bool]
) -> Taste:
    return Taste(name, description, (scorer,), shows)


_TASTES: dict[str, Taste] = {
    taste.name: taste
    for taste in (
        _taste("shorter", "fewer words", _shortness, lambda text: _num_words(text) <= SHORT_WORDS),
        _taste("longer", "more words", _without(_shortness), lambda text: _num_words(text) >= LONG_WORDS),
        _taste("formal", "a formal register", _formality, lambda text: _formality(text) > 0.5),
        _taste("warm", "friendly, encouraging words", _warmth, lambda text: _warmth(text) > 0),
        _taste("no-hedging", "plain claims", _without(_hedging), lambda text: _hedging(text) == 0),
        _taste("hedged", "careful claims", _hedging, lambda text: _hedging(text) > 0),
        _taste("list", "lists", _listing, lambda text: _listing(text) == 1),
        _taste("prose", "running text", _without(_listing), lambda text: _listing(text) == 0),
        _taste("question", "a closing question", _ends_with_question, lambda t: _ends_with_question(t) == 1),
        _taste(
            "no-question",
            "no closing question",
            _without(_ends_with_question),
            lambda text: _ends_with_question(text) == 0,
        ),
        _taste("emoji", "emoji", _emojis, lambda text: _emojis(text) > 0),
        _taste("no-emoji", "no emoji", _without(_emojis), lambda text: _emojis(text) == 0),
        _taste("example", "an example", _examples, lambda text: _examples(text) > 0),
        _taste(
            "example-first",
            "an example in the first or second sentence",
            _example_early,
            lambda text: _example_early(text) >= 0.75,
        ),
        _taste("exclaim-free", "no exclamation marks", _without(_exclaiming), lambda text: "!" not in text),
    )
}
