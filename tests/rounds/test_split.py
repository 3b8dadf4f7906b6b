"""The held-out side is decided by the prompt alone, for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import PreferencePair, SampledText
from dpo_studio.rounds.split import is_heldout, split_pairs

SHARE = 0.15
HELD_OUT_OF_FORTY = [3, 11, 16, 26, 29, 32, 35, 39]


def said(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def pair(number: int, prompt: str) -> PreferencePair:
    return PreferencePair(f"p{number}", said(prompt), SampledText("a"), SampledText("b"), (), ())


def test_the_side_of_these_prompts_never_changes() -> None:
    """Written down once: another hash or another normalisation would leak held-out prompts."""
    sides = [is_heldout(said(f"prompt {n}"), SHARE) for n in range(40)]
    assert [n for n, side in enumerate(sides) if side] == HELD_OUT_OF_FORTY


def test_case_and_whitespace_do_not_make_another_prompt() -> None:
    for number in range(40):
        plain = is_heldout(said(f"what is prompt {number}?"), SHARE)
        assert is_heldout(said(f"  What  IS\tprompt\n{number}? "), SHARE) is plain


def test_the_whole_conversation_counts() -> None:
    sides = {is_heldout((Message("system", f"s{n}"), *said("Hello?")), 0.5) for n in range(20)}
    assert sides == {True, False}


@pytest.mark.parametrize(
    ("share", "low", "high"), [(0.0, 0, 0), (0.15, 250, 350), (0.5, 920, 1080), (1.0, 2000, 2000)]
)
def test_the_share_is_about_what_was_asked(share: float, low: int, high: int) -> None:
    held = sum(is_heldout(said(f"question {n}"), share) for n in range(2000))
    assert low <= held <= high


def test_a_greater_share_only_adds() -> None:
    for number in range(200):
        prompt = said(f"question {number}")
        assert not is_heldout(prompt, 0.1) or is_heldout(prompt, 0.3)


@given(st.lists(st.integers(0, 30), max_size=40), st.floats(0, 0.5))
def test_no_prompt_is_on_both_sides_and_no_pair_is_lost(prompts: list[int], share: float) -> None:
    pairs = [pair(number, f"prompt {prompt}") for number, prompt in enumerate(prompts)]
    train, heldout = split_pairs(pairs, share)
    assert {p.messages for p in train}.isdisjoint(p.messages for p in heldout)
    assert sorted(p.pair_id for p in train + heldout) == sorted(p.pair_id for p in pairs)
    assert bool(train) is bool(pairs)


def test_when_all_would_be_held_out_none_is() -> None:
    pairs = [pair(n, f"prompt {HELD_OUT_OF_FORTY[0]}") for n in range(5)]
    assert split_pairs(pairs, SHARE) == (pairs, [])
    assert split_pairs([], SHARE) == ([], [])
