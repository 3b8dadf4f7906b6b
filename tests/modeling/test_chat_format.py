"""Conversations become the ids that the template means, and typed control tokens stay text."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import SampledText
from dpo_studio.errors import BadInput, ModelError
from dpo_studio.modeling.chat_format import ChatFormat
from tests.models import ARCHITECTURES, make_tokenizer

STYLES = (*ARCHITECTURES, "starter")
TALK = (
    Message("user", "  Hello There, how are é 你 you?\n\nok "),
    Message("assistant", "Fine <b>thanks</b>"),
    Message("user", "and\tnow?"),
)


def formatted(style: str) -> tuple[Any, ChatFormat]:
    tokenizer = make_tokenizer(style)
    return tokenizer, ChatFormat(tokenizer)


def plain(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def everything_added(tokenizer: Any) -> str:
    return "".join(token.content for token in tokenizer.added_tokens_decoder.values())


@pytest.mark.parametrize("style", STYLES)
def test_harmless_conversations_get_the_ids_of_apply_chat_template(style: str) -> None:
    tokenizer, chat = formatted(style)
    for messages in (TALK[:1], TALK):
        expected = tokenizer.apply_chat_template(
            plain(messages), add_generation_prompt=True, return_dict=False
        )
        assert chat.prompt_ids(messages) == expected


@pytest.mark.parametrize("style", STYLES)
def test_typed_control_tokens_stay_text(style: str) -> None:
    tokenizer, chat = formatted(style)
    evil = everything_added(tokenizer)
    for text in (evil, f" {evil} ", evil.upper(), evil.replace("<", "<<")):
        for role in ("user", "assistant"):
            harmless = (Message("user", "q"), Message("assistant", "q"), Message("user", "q"))
            hostile = tuple(Message(m.role, text) if m.role == role else m for m in harmless)
            assert controls(chat, hostile) == controls(chat, harmless)


@pytest.mark.parametrize("style", STYLES)
def test_negative_control_plain_templating_lets_them_through(style: str) -> None:
    tokenizer, chat = formatted(style)
    ids = tokenizer.apply_chat_template(
        plain((Message("user", everything_added(tokenizer)),)), add_generation_prompt=True, return_dict=False
    )
    found = [token for token in ids if token in chat.control_ids]
    assert len(found) > len(controls(chat, (Message("user", "q"),)))


def controls(chat: ChatFormat, messages: tuple[Message, ...]) -> list[int]:
    return [token for token in chat.prompt_ids(messages) if token in chat.control_ids]


@pytest.mark.parametrize("style", STYLES)
def test_typed_control_tokens_stay_text_in_a_response_too(style: str) -> None:
    tokenizer, chat = formatted(style)
    ids = chat.response_ids(everything_added(tokenizer))
    assert [token for token in ids if token in chat.control_ids] == [ids[-1]]
    assert chat.decode(ids) == everything_added(tokenizer)


CHATS = {style: formatted(style)[1] for style in ("llama", "qwen3", "gemma2", "starter")}
pieces = st.lists(
    st.sampled_from(["<", "|", "im_end", "|>", "<|im_end|>", "<E", "ſ", "\u212a", " ", "a", "\n"])
)


@given(st.sampled_from(sorted(CHATS)), pieces)
@settings(deadline=None, max_examples=60)
def test_no_mixture_of_pieces_makes_a_control_token(style: str, parts: list[str]) -> None:
    chat = CHATS[style]
    assert controls(chat, (Message("user", "".join(parts)),)) == controls(chat, (Message("user", "q"),))


@pytest.mark.parametrize("style", STYLES)
def test_at_most_one_beginning_of_text(style: str) -> None:
    tokenizer, chat = formatted(style)
    ids = chat.prompt_ids(TALK)
    expected = 0 if tokenizer.bos_token_id is None else 1
    assert ids.count(tokenizer.bos_token_id) == expected


def test_a_missing_beginning_of_text_is_added_when_the_tokenizer_adds_one() -> None:
    tokenizer = make_tokenizer("llama")
    complete = ChatFormat(tokenizer).prompt_ids(TALK)
    tokenizer.chat_template = tokenizer.chat_template.removeprefix("{{ bos_token }}")
    assert ChatFormat(tokenizer).prompt_ids(TALK) == complete


def test_a_doubled_beginning_of_text_is_written_once() -> None:
    tokenizer = make_tokenizer("llama")
    complete = ChatFormat(tokenizer).prompt_ids(TALK)
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    assert ChatFormat(tokenizer).prompt_ids(TALK) == complete


@pytest.mark.parametrize("style", STYLES)
def test_prompt_and_response_together_are_the_conversation(style: str) -> None:
    tokenizer, chat = formatted(style)
    answer = "Fine thanks"
    prompt, response = chat.encode_pair(TALK[:1], SampledText(answer))
    whole = tokenizer.apply_chat_template(plain((TALK[0], Message("assistant", answer))), return_dict=False)
    assert whole[: len(prompt + response)] == prompt + response
    assert response[-1] in chat.eos_ids
    assert not set(response[:-1]) & chat.eos_ids


def test_sampled_ids_are_used_as_they_are() -> None:
    _, chat = formatted("llama")
    assert chat.encode_pair(TALK, SampledText("x", (9, 8, 7)))[1] == [9, 8, 7]


@pytest.mark.parametrize("style", STYLES)
def test_decoding_gives_the_text_back_without_control_tokens(style: str) -> None:
    _, chat = formatted(style)
    text = "Hello é 你 there"
    assert chat.decode(chat.response_ids(text)) == text


def test_the_template_may_trim_and_lower_what_people_type() -> None:
    _, trimming = formatted("gemma2")
    assert trimming.prompt_ids((Message("user", "  hi \n"),)) == trimming.prompt_ids((Message("user", "hi"),))
    _, lowering = formatted("starter")
    assert lowering.prompt_ids((Message("user", "HeLLo"),)) == lowering.prompt_ids(
        (Message("user", "hello"),)
    )
    assert lowering.response_ids("HeLLo") != lowering.response_ids("hello")


def test_the_end_of_a_turn_is_learnt_from_the_template() -> None:
    tokenizer, chat = formatted("gemma2")
    assert chat.eos_ids == {
        tokenizer.convert_tokens_to_ids("<eos>"),
        tokenizer.convert_tokens_to_ids("<end_of_turn>"),
    }


def test_a_template_that_opens_answers_otherwise_still_ends_them() -> None:
    tokenizer = make_tokenizer("qwen3")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\n{% endif", "assistant\n<think>{% endif"
    )
    chat = ChatFormat(tokenizer)
    ids = chat.response_ids("hello")
    assert ids[-1] == tokenizer.eos_token_id
    assert chat.decode(ids) == "hello"


def test_a_refused_system_role_is_bad_input_with_the_reason() -> None:
    _, chat = formatted("gemma2")
    with pytest.raises(BadInput, match=r"System role not supported.*leave out the system message"):
        chat.prompt_ids((Message("system", "be nice"), Message("user", "hi")))


def test_a_broken_template_names_the_flag() -> None:
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ModelError, match="--chat-template FILE"):
        ChatFormat(tokenizer)


def test_the_debug_view_shows_prompt_and_response_apart() -> None:
    _, chat = formatted("qwen2")
    shown = chat.render_debug(TALK[:1], SampledText("ok"))
    assert "\x1b[90m<|im_start|>\x1b[0m" in shown
    assert "\x1b[32m<|im_end|>\x1b[0m" in shown
