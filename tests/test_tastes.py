"""Simulated labelers: each taste tells its property from the text alone."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.domain.preference import Choice
from dpo_studio.errors import BadInput
from dpo_studio.tastes import EMPTY_SCORE, get_taste, measure, taste_names

PLAIN = "Bring a warm coat. Pack two pairs of socks."

CASES = [
    (
        "shorter",
        "Bring a coat.",
        "Bring a coat, a hat, two pairs of socks and some tea for the long way home.",
    ),
    ("longer", PLAIN + " Tell a neighbour.", "Bring a coat."),
    (
        "formal",
        "I would recommend a coat. Furthermore, kindly pack socks.",
        "Hey, just grab a coat, it's cool!",
    ),
    ("warm", "I am glad you asked! I hope this helps, take care.", PLAIN),
    ("no-hedging", PLAIN, "Maybe bring a coat. I think it might rain."),
    ("hedged", "Perhaps bring a coat; it could be cold.", PLAIN),
    ("list", "Pack this:\n- a coat\n- socks\n- a hat", PLAIN),
    ("list", "1. a coat\n2. socks", PLAIN),
    ("prose", PLAIN, "- a coat\n- socks"),
    ("question", PLAIN + " Where are you going?", PLAIN),
    ("question", PLAIN + ' Ready? 😊"', "Where to? " + PLAIN),
    ("no-question", "Where to? " + PLAIN, PLAIN + " Where to?"),
    ("emoji", PLAIN + " 🧦", PLAIN),
    ("emoji", PLAIN + " :)", PLAIN),
    ("no-emoji", PLAIN, PLAIN + " ☀️"),
    ("example", "Pack something warm, for example a coat.", PLAIN),
    ("example-first", "For example, pack a coat. " + PLAIN, PLAIN + " For example, pack a coat."),
    ("example-first", PLAIN + " For example, pack a coat.", PLAIN),
    ("exclaim-free", PLAIN, "Bring a coat!"),
    ("shorter+warm", "Glad to help, enjoy!", PLAIN),
]

texts = st.one_of(
    st.text(max_size=60),
    st.lists(
        st.sampled_from(
            [
                "maybe",
                "glad",
                "for example",
                "!",
                "?",
                "🙂",
                "\n- one",
                "therefore",
                "it's",
                "word",
                "\n",
                "  ",
            ]
        ),
        max_size=20,
    ).map(" ".join),
)


@pytest.mark.parametrize(("name", "better", "worse"), CASES)
def test_a_taste_prefers_the_text_that_has_its_property(name: str, better: str, worse: str) -> None:
    taste = get_taste(name)
    assert taste.prefers(better, worse, 0.0, Random(0)) is Choice.A
    assert taste.prefers(worse, better, 0.0, Random(0)) is Choice.B


@pytest.mark.parametrize("name", taste_names())
def test_an_empty_answer_loses_under_every_taste(name: str) -> None:
    assert get_taste(name).score(" \n") == EMPTY_SCORE
    assert get_taste(name).prefers("", "Maybe! 😊 it's?", 0.0, Random(0)) is Choice.B
    assert measure(name, [""]) == 0


@given(texts, texts, st.sampled_from([*taste_names(), "shorter+warm", "list+emoji+hedged"]))
def test_swapping_the_answers_swaps_the_choice(a: str, b: str, name: str) -> None:
    taste = get_taste(name)
    swapped = {Choice.A: Choice.B, Choice.B: Choice.A, Choice.TIE: Choice.TIE}
    assert taste.prefers(b, a, 0.0, Random(0)) is swapped[taste.prefers(a, b, 0.0, Random(0))]


@given(texts, st.sampled_from(taste_names()))
def test_scores_lie_between_zero_and_one_and_a_text_ties_with_itself(text: str, name: str) -> None:
    taste = get_taste(name)
    assert taste.score(text) == EMPTY_SCORE or 0 <= taste.score(text) <= 1
    assert taste.prefers(text, text, 0.5, Random(1)) is Choice.TIE


@given(texts)
def test_opposite_tastes_share_out_every_text(text: str) -> None:
    if text.strip():
        for one, other in (("question", "no-question"), ("emoji", "no-emoji"), ("hedged", "no-hedging")):
            assert measure(one, [text]) + measure(other, [text]) == 1


def test_noise_flips_that_share_of_decisions() -> None:
    taste, rng = get_taste("shorter"), Random(7)
    flips = sum(taste.prefers("a", "a b c", 0.2, rng) is Choice.B for _ in range(2000))
    # Standard deviation 17.9: five of them, a false alarm once in two million.
    assert abs(flips - 400) < 90


def test_measure_is_the_share_of_texts_with_the_property() -> None:
    assert measure("question", ["Why?", "Because.", "Really?", "Yes."]) == 0.5
    assert measure("shorter+question", ["Why?", "Because.", " ".join(["word"] * 30) + "?"]) == pytest.approx(
        1 / 3
    )


def test_word_lists_match_whole_words_only() -> None:
    # "maybell", "gladly-not" parts and a month must not count by accident of their letters.
    assert measure("hedged", ["Maybell oftener"]) == 0
    assert measure("warm", ["A gladiator in gloves"]) == 0


@pytest.mark.parametrize("name", ["", "nobody", "shorter+", "shorter+nobody"])
def test_unknown_tastes_are_refused_and_the_known_named(name: str) -> None:
    with pytest.raises(BadInput, match="expected one of shorter"):
        get_taste(name)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one"):
        measure("shorter", [])
