"""Second turns of the corpus: what is asked for is what is answered, and nothing is said twice."""

import random
import re
from collections import Counter
from collections.abc import Iterator

import pytest

from dpo_studio import tastes
from dpo_studio.starter import answers, second_turns
from dpo_studio.starter.corpus import Corpus
from dpo_studio.starter.library import Entity, Topic
from dpo_studio.starter.style import Style, draw_style

Case = tuple[Topic, Entity, Style, str]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return Corpus()


def first_answers(corpus: Corpus, kind: str) -> Iterator[Case]:
    """Every entity's answer that leaves the second turn something to do."""
    rng = random.Random(4)
    for topic in corpus.topics:
        for entity in topic.entities:
            style = second_turns.suited(draw_style(rng), kind)
            points = answers.pick_points(entity, style.points, rng) if entity.points else []
            yield topic, entity, style, answers.compose(topic, entity, style, points, rng)


def answer_to(kind: str, case: Case) -> str:
    rng = random.Random(7)
    topic, entity, _, said = case
    return second_turns.react(kind, topic, entity, said, draw_style(rng), rng)


def num_words(text: str) -> int:
    return len(text.split())


def test_asked_for_less_the_corpus_says_less(corpus: Corpus) -> None:
    """Followed by "shorter", an answer once kept its opener and closing question and could grow."""
    for case in first_answers(corpus, "shorter"):
        assert num_words(answer_to("shorter", case)) <= max(20, num_words(case[3]))


def test_asked_for_more_words_the_corpus_says_more(corpus: Corpus) -> None:
    cases = [case for case in first_answers(corpus, "longer") if case[0].key != "stories" and case[1].points]
    longer = [num_words(answer_to("longer", case)) > num_words(case[3]) for case in cases]
    assert sum(longer) > 0.95 * len(longer)


def test_asked_for_a_list_the_corpus_gives_one(corpus: Corpus) -> None:
    for case in first_answers(corpus, "list"):
        if case[0].allows_lists and not case[1].is_unsure:
            assert tastes.get_taste("list").shows(answer_to("list", case))


def test_another_one_is_another_one(corpus: Corpus) -> None:
    """The second answer once drew from the same points, so that one in four said the same again."""
    for case in first_answers(corpus, "more"):
        said = [point.text for point in case[1].points if point.text.lower() in case[3].lower()]
        if said and len(said) < len(case[1].points):
            again = answer_to("more", case).lower()
            assert not [text for text in said if text.lower() in again]


def test_an_example_is_not_given_twice(corpus: Corpus) -> None:
    """ "Like what?" after an answer with the entity's only example got the same sentence back."""
    rng = random.Random(1)
    for topic in corpus.topics:
        for entity in topic.entities:
            if len(entity.examples) > 1 and topic.key != "smalltalk":
                said = f"For example, {entity.examples[0]}."
                answer = second_turns.react("example", topic, entity, said, draw_style(rng), rng)
                assert entity.examples[0] not in answer


def test_another_story_has_another_hero(corpus: Corpus) -> None:
    """Of one hero there is one plot: told again in other words it was no other story."""
    rng = random.Random(3)
    pairs = Counter[bool]()
    while sum(pairs.values()) < 30:
        subjects = corpus.conversation(rng).subjects
        if len(subjects) > 1 and all(subject.startswith("stories/") for subject in subjects[:2]):
            pairs[subjects[0] != subjects[1]] += 1
    assert pairs[True] > 5
    assert pairs[False] > 5  # "longer" and "shorter" stay with the hero


@pytest.mark.parametrize("kind", second_turns.KINDS)
def test_an_ask_is_typed_text_without_leftovers_of_the_file_format(kind: str) -> None:
    rng = random.Random(0)
    drawn = {second_turns.ask_for(kind, rng) for _ in range(500)}
    assert len(drawn) > 60
    assert all(re.fullmatch(r"\S+( \S+)*", ask) and not re.search(r"[()|]| [,?]", ask) for ask in drawn)


def test_a_list_is_closed_by_an_empty_line(corpus: Corpus) -> None:
    """Markdown draws a sentence on the next line into the list's last item."""
    rng = random.Random(5)
    texts = [text for _ in range(400) for role, text in corpus.conversation(rng).turns if role == "assistant"]
    after_lists = [re.search(r"^(?:- |\d\. ).*\n(?!- |\d\. )(.*)$", text, re.MULTILINE) for text in texts]
    found = [match.group(1) for match in after_lists if match]
    assert len(found) > 20
    assert set(found) == {""}
