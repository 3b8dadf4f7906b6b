"""Conversations are refused or cleaned before any tokenizer sees them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.domain.chat import (
    MAX_PROMPT_CHARS,
    Message,
    Role,
    SamplingParams,
    check_conversation,
    clean_text,
)
from dpo_studio.errors import BadInput


def talk(*turns: tuple[Role, str]) -> list[Message]:
    return [Message(role, content) for role, content in turns]


@pytest.mark.parametrize(
    "messages",
    [
        talk(("user", "Hi")),
        talk(("system", "Be kind."), ("user", "Hi")),
        talk(("user", "Hi"), ("assistant", "Hello"), ("user", "More")),
        talk(("user", "x" * MAX_PROMPT_CHARS)),
    ],
)
def test_a_good_conversation_comes_back_unchanged(messages: list[Message]) -> None:
    assert check_conversation(messages) == tuple(messages)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one message"),
        (talk(("assistant", "Hi")), r"messages\[0\]: expected the role system or user, found assistant"),
        (talk(("user", "a"), ("user", "b")), r"messages\[1\]: expected the role assistant, found user"),
        (talk(("system", "a"), ("assistant", "b")), r"messages\[1\]: expected the role user"),
        (talk(("user", "a"), ("assistant", "b")), "last turn to be the user's, found assistant"),
        (talk(("system", "a")), "last turn to be the user's, found system"),
        (talk(("user", " \n\t ")), r"messages\[0\]: expected some text"),
        (talk(("user", "\x00\x07")), r"messages\[0\]: expected some text"),
        (talk(("user", "x" * (MAX_PROMPT_CHARS + 1))), f"at most {MAX_PROMPT_CHARS} characters"),
    ],
)
def test_what_no_model_can_answer_is_refused_by_place(messages: list[Message], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        check_conversation(messages)


def test_control_characters_and_lone_surrogates_go_tabs_and_newlines_stay() -> None:
    assert clean_text("a\x00b\x1b[31m\x7f\ud800c\t\nü😀") == "ab[31mc\t\nü😀"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("one\x0btwo", "one two"),
        ("one\x0c\x0ctwo\rthree", "one two three"),
        ("a cell\x1fanother\x1c", "a cell another"),
        ("line\r\nline", "line\nline"),
        ("one \x0b two", "one  two"),
        ("\x0bone\x0b\n\x0btwo", "one\ntwo"),
        ("o\x00n\x00e\x00", "one"),
        ("one\x00\x0b\ud800two", "one two"),
        ("tab\tstays", "tab\tstays"),
    ],
)
def test_a_control_character_that_parts_two_words_leaves_a_blank(text: str, cleaned: str) -> None:
    """Line breaks of word processors were dropped, and the words on both sides became one."""
    assert clean_text(text) == cleaned


@given(st.text())
def test_cleaned_text_is_clean_and_encodes(text: str) -> None:
    cleaned = clean_text(text)
    cleaned.encode("utf-8")
    assert clean_text(cleaned) == cleaned


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": 5.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"max_tokens": 0},
        {"max_tokens": 8193},
        {"seed": -1},
        {"seed": 2**63},
        {"stop": ("",)},
        {"stop": ("a", "b", "c", "d", "e")},
        {"stop": ("x" * 65,)},
    ],
)
def test_sampling_out_of_range_is_refused_by_name(bad: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=next(iter(bad))):
        SamplingParams(**bad)  # type: ignore[arg-type]


def test_the_edges_of_sampling_are_allowed() -> None:
    SamplingParams(temperature=0.0, top_p=1.0, top_k=0, max_tokens=1, seed=0, stop=())
    SamplingParams(temperature=5.0, top_p=1e-6, max_tokens=8192, seed=2**63 - 1, stop=("x" * 64,) * 4)
