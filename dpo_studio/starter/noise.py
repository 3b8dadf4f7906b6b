"""Make clean prompts look like what people type: typos, dropped marks, greetings, other words around."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from dpo_studio.starter import phrases

_SYLLABLE_LINES = (
    "ba be bi bo bu da de di do du fa fe fi ga ge gi go ka ke ko la le li lo lu ma me mi mo mu na ne "
    "ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu va ve vi wa we wi xa xo ya ye "
    "za ze zi zo blo cra dri fru gli kra ple plo pri sta ste stro tru zwi sch ent ing or ax ul im on "
    "ar is um "
)
_SYLLABLES = _SYLLABLE_LINES.split()
_SLANG = (
    ("you", "u"), ("your", "ur"), ("are", "r"), ("please", "plz"), ("please", "pls"),
    ("tomorrow", "tmrw"), ("tonight", "tonite"), ("with", "w"), ("because", "cuz"), ("want to", "wanna"),
    ("going to", "gonna"), ("birthday", "bday"), ("something", "smth"), ("people", "ppl"),
    ("thanks", "thx"), ("thank you", "ty"), ("what is", "whats"), ("i am", "im"), ("do not", "dont"),
    ("cannot", "cant"), ("i have", "ive"), ("it is", "its"), ("give me", "gimme"), ("really", "rly"),
    ("and", "n"), ("and", "&"), ("how is", "hows"), ("good", "gd"), ("weekend", "wknd"),
    ("i would", "id"), ("got to", "gotta"), ("kind of", "kinda"), ("okay", "ok"), ("love", "luv"),
    ("about", "abt"), ("night", "nite"), ("does not", "doesnt"), ("is it", "is it even"), ("so", "sooo"),
)  # fmt: skip
_NEXT_KEY = {
    "a": "s",
    "e": "r",
    "i": "o",
    "o": "p",
    "n": "m",
    "t": "r",
    "s": "d",
    "r": "t",
    "l": "k",
    "u": "i",
}


def nonsense(rng: random.Random) -> str:
    """A word that no dictionary holds."""
    if rng.random() < 0.25:
        return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 8)))
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 4)))


def typo(word: str, rng: random.Random) -> str:
    """Swap, drop, double or mistype one inner letter; short words stay."""
    if len(word) < 4 or not word.isalpha():
        return word
    at = rng.randrange(1, len(word) - 1)
    kind = rng.random()
    if kind < 0.3:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    if kind < 0.6:
        return word[:at] + word[at + 1 :]
    if kind < 0.8:
        return word[:at] + word[at] + word[at:]
    return word[:at] + _NEXT_KEY.get(word[at], word[at]) + word[at + 1 :]


def slang(prompt: str, rng: random.Random) -> str:
    """Chat spelling for some of the words."""
    for plain, short in rng.sample(_SLANG, 12):
        prompt = re.sub(rf"\b{plain}\b", short, prompt)
    return prompt


def with_strangers(prompt: str, words: Sequence[str], rng: random.Random) -> str:
    """Everyday words, numbers and some nonsense strewn in: what it does not know, the model must skip."""
    parts = prompt.split(" ")
    for _ in range(rng.choices((1, 2, 3, 4, 6), (0.3, 0.3, 0.2, 0.1, 0.1))[0]):
        kind = rng.random()
        word = rng.choice(words) if kind < 0.85 else nonsense(rng) if kind < 0.93 else str(rng.randint(1, 99))
        # in front, behind, or (seldom) between, so that most phrases stay whole
        at = rng.choices((0, len(parts), rng.randint(0, len(parts))), (0.4, 0.35, 0.25))[0]
        parts.insert(at, word)
    return " ".join(parts)


def as_typed(prompt: str, rng: random.Random) -> str:
    """Half of the prompts stay nearly clean; the other half gets one to three kinds of noise."""
    if rng.random() < 0.5:
        return _punctuated(prompt, rng)
    if rng.random() < 0.30:
        prompt = f"{rng.choice(phrases.FILLER_START)}{rng.choice((' ', ', ', '! '))}{prompt}"
    if rng.random() < 0.22:
        prompt = f"{prompt}{rng.choice((' ', ', ', '. '))}{rng.choice(phrases.FILLER_END)}"
    if rng.random() < 0.18:
        story, joint = rng.choice(phrases.FILLER_STORY), rng.choice((". ", ", ", " "))
        prompt = f"{story}{joint}{prompt}" if rng.random() < 0.6 else f"{prompt}{joint}{story}"
    if rng.random() < 0.4:
        prompt = slang(prompt, rng)
    words = prompt.split(" ")
    for _ in range(rng.choices((0, 1, 2), (0.45, 0.40, 0.15))[0]):
        at = rng.randrange(len(words))
        words[at] = typo(words[at], rng)
    if len(words) > 4 and rng.random() < 0.12:
        del words[rng.randrange(len(words) - 1)]
    return _punctuated(" ".join(words), rng)


def _punctuated(prompt: str, rng: random.Random) -> str:
    if rng.random() < 0.25:
        prompt = (
            prompt.replace("do not", "don't")
            .replace("cannot", "can't")
            .replace("i am", "i'm")
            .replace("what is", "what's")
        )
    if rng.random() < 0.08:
        prompt = prompt.replace("'", "").replace(" you ", " u ").replace("what", "wat")
    if prompt[-1] in "?.!":
        return prompt
    return prompt + rng.choices(("", "?", ".", "??", "!", "..."), (0.55, 0.27, 0.08, 0.03, 0.04, 0.03))[0]
