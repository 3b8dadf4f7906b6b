"""The corpus: the same seed makes the same text, style is independent of content, no taste is near 0 or 1."""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import islice

import pytest

from dpo_studio.starter import answers
from dpo_studio.starter.checker import Checker, owner_name
from dpo_studio.starter.corpus import Conversation, Corpus
from dpo_studio.starter.evaluate import read_items
from dpo_studio.starter.library import OUTSIDE
from dpo_studio.starter.noise import as_typed, nonsense
from dpo_studio.starter.style import draw_style

FLAGS = ("warm", "hedged", "question", "emoji", "opener", "example")


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


@pytest.fixture(scope="module")
def sample(corpus: Corpus) -> list[Conversation]:
    return list(islice(corpus.conversations(seed=11), 6000))


def test_same_seed_same_corpus(corpus: Corpus, sample: list[Conversation]) -> None:
    assert list(islice(Corpus().conversations(seed=11), 300)) == sample[:300]
    assert list(islice(corpus.conversations(seed=12), 300)) != sample[:300]


def test_every_style_leaves_room_to_move_both_ways(sample: list[Conversation]) -> None:
    for flag in FLAGS:
        assert 0.15 <= _rate(sample, flag) <= 0.60, flag
    formal = sum(item.style.register == "formal" for item in sample) / len(sample)
    short = sum(item.style.points == 1 for item in sample) / len(sample)
    listed = sum("\n- " in text or "\n1. " in text for text in map(_answer, sample)) / len(sample)
    assert 0.15 <= formal <= 0.60
    assert 0.15 <= short <= 0.60
    assert 0.15 <= listed <= 0.60


def test_style_does_not_depend_on_the_topic(sample: list[Conversation]) -> None:
    by_topic = defaultdict(list)
    for item in sample:
        by_topic[item.topic].append(item)
    for flag in FLAGS:
        everywhere = _rate(sample, flag)
        for topic, items in by_topic.items():
            # 400 or more coins a topic: four standard deviations are at most 0.1
            assert abs(_rate(items, flag) - everywhere) < 0.1, (topic, flag)


def test_terse_answers_exist_and_keep_their_point(corpus: Corpus) -> None:
    checker, rng = Checker(corpus.topics), random.Random(3)
    food = next(topic for topic in corpus.topics if topic.key == "food")
    for entity in food.entities:
        style = next(style for style in iter(lambda: draw_style(rng), None) if style.points == 1)
        text = answers.compose(food, entity, style, answers.pick_points(entity, 1, rng), rng)
        assert checker.judge(text, [owner_name(food, entity)]).on_topic


def test_the_checker_accepts_what_the_corpus_says(corpus: Corpus) -> None:
    checker, rng = Checker(corpus.topics), random.Random(5)
    for _ in range(400):
        topic = rng.choice(corpus.topics)
        entity, style = rng.choice(topic.entities), draw_style(rng)
        points = answers.pick_points(entity, style.points, rng) if entity.points else []
        verdict = checker.judge(
            answers.compose(topic, entity, style, points, rng), [owner_name(topic, entity)]
        )
        assert verdict.on_topic and not verdict.novel and not verdict.invented and not verdict.looping
    for _ in range(100):
        assert checker.judge(answers.compose_outside(draw_style(rng), rng), [OUTSIDE]).on_topic


def test_the_checker_sees_a_foreign_sentence_and_an_invented_word(corpus: Corpus) -> None:
    checker = Checker(corpus.topics)
    mixed = checker.judge(
        "Make an omelet with cheese and mushrooms. Bring a big towel and a swimsuit.", ["food/eggs"]
    )
    assert not mixed.on_topic
    assert checker.judge("Make an omeletto with cheese and mushrooms.", ["food/eggs"]).invented == (
        "omeletto",
    )
    assert checker.judge("Freeze bananas. Freeze bananas.", ["food/bananas"]).looping


def test_the_checker_tells_an_opening_phrase_from_content(corpus: Corpus) -> None:
    checker = Checker(corpus.topics)
    assert checker.opens_with_a_phrase("Sure thing! Boil eggs for seven minutes.")
    assert not checker.opens_with_a_phrase("Boil eggs for seven minutes. Sure thing!")


def test_i_do_not_talk_to_yourself() -> None:
    """ "I would {p}." around "talk to yourself" made English that nobody speaks."""
    assert not answers.suits("I would {p}.", "talk to yourself in the new language")
    assert not answers.suits("I'd maybe {p}.", "put your phone in another room")
    assert answers.suits("I would recommend that you {p}.", "put your phone in another room")
    assert answers.suits("I would {p}.", "roast potatoes with oil and salt")


def test_held_out_prompts_are_no_training_prompts(corpus: Corpus) -> None:
    """Not one in twenty is met by chance among 20 000 generated prompts (short ones: a greeting, a hero)."""
    seen = {item.turns[0][1].strip("?!. ") for item in islice(corpus.questions(seed=2), 20_000)}
    held_out = {item.messages[0].lower().strip("?!. ") for item in read_items()}
    assert len(held_out & seen) <= len(held_out) // 20


def test_contractions_stop_before_the_end_of_a_sentence() -> None:
    assert answers.contract("One exam does not decide who you are") == "One exam doesn't decide who you are"
    assert answers.contract("it is late and you are here") == "it's late and you're here"


def test_noise_leaves_something_to_read() -> None:
    rng = random.Random(1)
    assert all(as_typed("what can i cook with rice", rng).strip() for _ in range(500))
    assert all(len(nonsense(rng)) >= 3 for _ in range(200))


def _rate(items: list[Conversation], flag: str) -> float:
    return sum(bool(getattr(item.style, flag)) for item in items) / len(items)


def _answer(item: Conversation) -> str:
    return next(text for role, text in item.turns if role == "assistant")
