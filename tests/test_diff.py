"""Word differences: spans rebuild both texts and show what changed, word by word."""

import itertools
import time

from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.diff import DiffSpan, word_diff

words = st.lists(
    st.sampled_from(["a", "b", "don't", " ", "  ", "\n", ",", "é", "🙂", "well-known"]), max_size=30
)


def test_one_changed_word_is_removed_then_added() -> None:
    assert word_diff("a big dog", "a small dog") == (
        DiffSpan("same", "a "),
        DiffSpan("removed", "big"),
        DiffSpan("added", "small"),
        DiffSpan("same", " dog"),
    )


def test_equal_texts_are_one_span_and_empty_texts_none() -> None:
    assert word_diff("same text", "same text") == (DiffSpan("same", "same text"),)
    assert word_diff("", "") == ()
    assert word_diff("", "x") == (DiffSpan("added", "x"),)


def test_a_word_with_an_apostrophe_is_one_word() -> None:
    assert word_diff("I do", "I don't") == (
        DiffSpan("same", "I "),
        DiffSpan("removed", "do"),
        DiffSpan("added", "don't"),
    )


@given(words, words)
def test_spans_rebuild_both_texts_and_neighbours_differ(left: list[str], right: list[str]) -> None:
    a, b = "".join(left), "".join(right)
    spans = word_diff(a, b)
    assert "".join(span.text for span in spans if span.kind != "added") == a
    assert "".join(span.text for span in spans if span.kind != "removed") == b
    assert all(one.kind != two.kind for one, two in itertools.pairwise(spans))


def test_long_unlike_texts_do_not_take_quadratic_time() -> None:
    started = time.perf_counter()
    spans = word_diff("start " + "ab " * 20_000, "start " + "ba " * 20_000)
    # A full match of 40 000 × 40 000 tokens takes minutes; this limit is generous for a busy machine.
    assert time.perf_counter() - started < 5
    assert spans[0] == DiffSpan("same", "start ")
