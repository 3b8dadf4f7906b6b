"""The chat: history is client data, answers name their version, errors keep the message."""

from typing import Any

import pytest

from dpo_studio.domain.chat import Message, SamplingParams
from dpo_studio.errors import BadInput, EngineUnavailable
from dpo_studio.ui.chat_page import ChatHandlers
from dpo_studio.ui.chat_screen import Chat, ChatTurn, dump_chat, parse_chat, render_chat
from tests.ui.fakes import World
from tests.ui.payloads import PAYLOADS

CHAT = Chat((ChatTurn("user", "Hi"), ChatTurn("assistant", "Yes <b>?", "v3")))


async def collect(updates: Any) -> list[tuple[Any, ...]]:
    return [update async for update in updates]


@pytest.fixture
def handlers(studio: Any) -> ChatHandlers:
    return ChatHandlers(studio.generation, SamplingParams(seed=1))


def test_a_chat_survives_the_way_through_the_browser() -> None:
    assert parse_chat(dump_chat(CHAT)) == CHAT
    assert parse_chat("") == Chat()


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "[]",
        "{",
        '{"turns": [{"role": "root", "content": "x"}]}',
        '{"turns": [], "more": 1}',
        '{"turns": 3}',
    ],
)
def test_a_tampered_history_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(BadInput, match="history"):
        parse_chat(text)


def test_each_answer_carries_its_version_and_no_html() -> None:
    question, answer = render_chat(CHAT).bubbles
    assert question["content"] == "Hi"
    assert answer["content"] == "Yes &lt;b>?\n\n###### v3"


def test_an_answer_cut_inside_a_fence_does_not_swallow_its_version() -> None:
    (bubble,) = render_chat(Chat((ChatTurn("assistant", "```py\nx = 1", "v1"),))).bubbles
    assert bubble["content"] == "```py\nx = 1\n```\n\n###### v1"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_reaches_a_bubble_as_html(payload: str) -> None:
    screen = render_chat(Chat((ChatTurn("user", payload), ChatTurn("assistant", payload, payload))))
    assert all("<" not in bubble["content"] for bubble in screen.bubbles)


def test_an_answer_stopped_before_its_first_word_is_forgotten_with_its_question() -> None:
    stopped = Chat((*CHAT.turns, ChatTurn("user", "And?"), ChatTurn("assistant", " ", "v3")))
    assert stopped.asked("Again").messages == (*CHAT.messages, Message("user", "Again"))


async def test_the_live_version_answers_the_whole_conversation(handlers: ChatHandlers, world: World) -> None:
    seen = await collect(handlers.send("More", dump_chat(CHAT)))
    (call,) = world.calls
    assert call[:3] == ("stream", (*CHAT.messages, Message("user", "More")), "live")
    final = parse_chat(seen[-1][1])
    assert final.turns[-1].version == "base" and final.turns[-1].content
    assert len(seen[-1][0]) == 4
    assert [update[5]["visible"] for update in (seen[0], seen[-1])] == [True, False]


async def test_history_grows_with_every_update_so_that_stop_keeps_what_is_there(
    handlers: ChatHandlers,
) -> None:
    updates = handlers.send("Hello", "")
    first = await anext(updates)
    await updates.aclose()
    assert [turn.role for turn in parse_chat(first[1]).turns] == ["user", "assistant"]


async def test_an_error_keeps_the_message_in_its_box_and_the_chat_as_it_was(
    handlers: ChatHandlers, world: World
) -> None:
    world.fail_with = EngineUnavailable("The model is restarting")
    (update,) = await collect(handlers.send("More", dump_chat(CHAT)))
    bubbles, history, notice, box, *_ = update
    assert (len(bubbles), parse_chat(history), notice) == (2, CHAT, "The model is restarting")
    assert box != ""


async def test_an_empty_message_is_refused_with_a_sentence(handlers: ChatHandlers) -> None:
    (update,) = await collect(handlers.send(" ", ""))
    assert "expected some text" in update[2]


def test_a_new_chat_is_empty(handlers: ChatHandlers) -> None:
    assert handlers.clear()[:4] == ([], '{"turns": []}', "", "")


async def test_the_box_is_emptied_once_so_that_the_next_message_can_be_typed(handlers: ChatHandlers) -> None:
    boxes = [update[3] async for update in handlers.send("Hello", "")]
    assert [box == "" for box in boxes].count(True) == 1
