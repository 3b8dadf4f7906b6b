"""The label page: blind until the vote, saved before shown, errors as one sentence."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any, cast

import pytest

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import Choice
from dpo_studio.errors import EngineUnavailable, StorageError
from dpo_studio.services.views import ComparisonView, LabelProgress, VoteView
from dpo_studio.ui.label_page import NO_PROMPT, LabelHandlers, to_updates
from dpo_studio.ui.label_screen import (
    render_comparison,
    render_nothing,
    render_progress,
    render_vote,
)
from dpo_studio.ui.trouble import INTERNAL
from tests.ui.fakes import World

VIEW = ComparisonView("c1", (Message("user", "Hello?"),), "one <b>", "two", ready=True)
NUM_OUTPUTS = 11
ID_OUTPUT = 3
NOTICE_OUTPUT = 4


async def collect(updates: Any) -> list[tuple[Any, ...]]:
    return [update async for update in updates]


def interactive(updates: tuple[Any, ...]) -> set[Any]:
    """What the update says about the vote buttons."""
    return {button.get("interactive") for button in updates[6:11]}


def test_a_comparison_is_shown_without_a_word_about_versions() -> None:
    screen = render_comparison(VIEW)
    assert (screen.prompt, screen.a, screen.b) == ("Hello?", "one &lt;b>", "two")
    assert screen.can_vote and not screen.can_fetch


def test_votes_wait_until_both_answers_are_complete() -> None:
    half = ComparisonView("c1", VIEW.messages, "o", "", ready=False)
    assert not render_comparison(half).can_vote


def test_a_longer_conversation_is_shown_turn_by_turn() -> None:
    messages = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "More"))
    prompt = render_comparison(ComparisonView("c", messages, "", "", False)).prompt
    assert prompt.split("\n\n")[1::2] == ["Hi", "Yes?", "More"]


def test_the_reveal_names_both_versions() -> None:
    view = VoteView("vote", "c1", "a", "v2", "base", True)
    assert render_vote(view) == "**A is better** – A was **v2**, B was **base**."


def test_the_reveal_is_short_when_both_versions_are_one() -> None:
    assert "both answers were written by **v2**" in render_vote(VoteView("v", "c", "tie", "v2", "v2", True))


def test_nothing_to_show_offers_to_try_again_and_escapes_the_reason() -> None:
    screen = render_nothing("prompt: found <b>*x*</b>")
    assert screen.can_fetch and not screen.can_vote
    assert "<" not in (screen.notice or "") and "*" not in (screen.notice or "")


@pytest.mark.parametrize(
    ("new_pairs", "words"),
    [(0, "30 more pairs"), (29, "1 more pair until"), (30, "enough for a round"), (99, "99 new pairs")],
)
def test_progress_says_how_far_the_next_round_is(new_pairs: int, words: str) -> None:
    assert words in render_progress(LabelProgress(1, 2, 3, new_pairs, 30, 0))


def test_a_stream_sends_the_prompt_and_the_buttons_once() -> None:
    first = render_comparison(ComparisonView("c", VIEW.messages, "a", "", False))
    second = render_comparison(ComparisonView("c", VIEW.messages, "a b", "c", False))
    update = to_updates(second, first)
    assert update[1:3] == ("a b", "c")
    assert all("interactive" not in button for button in update[6:])
    assert update[0] != second.prompt


async def test_loading_shows_the_next_comparison_and_ends_votable(studio: Any, request_of_ann: Any) -> None:
    seen = await collect(LabelHandlers(studio.labeling).resume(request_of_ann))
    assert interactive(seen[0]) == {False}
    assert interactive(seen[-1]) == {True}
    assert all(len(update) == NUM_OUTPUTS for update in seen)
    assert seen[-1][ID_OUTPUT] == studio.world.open.id


async def test_a_reload_brings_back_the_comparison_left_open(studio: Any, request_of_ann: Any) -> None:
    handlers = LabelHandlers(studio.labeling)
    before = await collect(handlers.resume(request_of_ann))
    after = await collect(handlers.resume(request_of_ann))
    assert len(after) == 1
    assert after[0][ID_OUTPUT] == before[-1][ID_OUTPUT]


async def test_the_caller_comes_from_the_request_and_from_nowhere_else(
    studio: Any, request_of_ann: Any
) -> None:
    await collect(LabelHandlers(studio.labeling).ask("Hi", request_of_ann))
    assert studio.world.calls == [("stream_next", "ann", (Message("user", "Hi"),))]


async def test_asking_empties_the_box_once_answers_are_on_their_way(studio: Any, request_of_ann: Any) -> None:
    seen = await collect(LabelHandlers(studio.labeling).ask("Hi", request_of_ann))
    assert [update[-1] for update in seen if isinstance(update[-1], str)] == [""]
    assert all(update[1] or update[2] for update in seen), "never a pair without a word"


class Refusing:
    """A labeling service whose model fails, before or after the first words."""

    def __init__(self, views: list[ComparisonView], left_open: ComparisonView | None) -> None:
        self._views = views
        self._left_open = left_open

    async def stream_next(self, labeler: str, messages: Any = None) -> AsyncGenerator[ComparisonView, None]:
        del labeler, messages
        for view in self._views:
            yield view
        raise EngineUnavailable("The model stopped; please ask again")

    def current(self, labeler: str) -> ComparisonView | None:
        del labeler
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return self._left_open


def is_untouched(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"__type__"}


async def test_an_empty_prompt_changes_nothing_but_the_notice(studio: Any, request_of_ann: Any) -> None:
    (update,) = await collect(LabelHandlers(studio.labeling).ask("  ", request_of_ann))
    assert update[NOTICE_OUTPUT] == NO_PROMPT
    assert all(is_untouched(value) for place, value in enumerate(update) if place != NOTICE_OUTPUT)
    assert studio.world.calls == []


async def test_a_prompt_refused_before_the_first_word_leaves_pair_and_box_alone(request_of_ann: Any) -> None:
    nothing_yet = replace(VIEW, a="", b="", ready=False)
    handlers = LabelHandlers(cast(Any, Refusing([nothing_yet], None)))
    (update,) = await collect(handlers.ask("a long one", request_of_ann))
    assert "The model stopped" in update[NOTICE_OUTPUT]
    assert all(is_untouched(value) for place, value in enumerate(update) if place != NOTICE_OUTPUT)


async def test_a_failure_in_mid_answer_gives_prompt_and_pair_back(request_of_ann: Any) -> None:
    """The box had been emptied and the panes overwritten; both used to be lost.

    Reading the pair used to hold up the event loop as well.
    """
    half = replace(VIEW, id="c2", a="half", b="", ready=False)
    handlers = LabelHandlers(cast(Any, Refusing([half], VIEW)))
    *_, last = await collect(handlers.ask("my words", request_of_ann))
    assert last[-1] == "my words"
    assert last[ID_OUTPUT] == VIEW.id
    assert "The model stopped" in last[NOTICE_OUTPUT]


async def test_a_vote_is_saved_before_anything_is_shown_and_rests_the_buttons(
    studio: Any, request_of_ann: Any
) -> None:
    handlers = LabelHandlers(studio.labeling)
    await collect(handlers.resume(request_of_ann))
    comparison_id = studio.world.open.id
    sentence, *buttons = handlers.voter(Choice.B)(comparison_id, request_of_ann)
    assert studio.world.votes[0][0].choice == "b"
    assert "B is better" in sentence
    assert {button["interactive"] for button in buttons} == {False}


def test_a_vote_on_a_strange_comparison_is_a_sentence(studio: Any, request_of_ann: Any) -> None:
    sentence, *_ = LabelHandlers(studio.labeling).voter(Choice.A)("somebody-elses", request_of_ann)
    assert "expected one that is open for you" in sentence
    assert studio.world.votes == []


def test_a_refused_write_is_said_and_not_lost(world: World, studio: Any, request_of_ann: Any) -> None:
    world.fail_with = StorageError("The disk is full; nothing was saved")
    sentence, *_ = LabelHandlers(studio.labeling).voter(Choice.A)("c", request_of_ann)
    assert "The disk is full" in sentence


def test_a_bug_of_ours_shows_no_detail(
    world: World, studio: Any, request_of_ann: Any, caplog: pytest.LogCaptureFixture
) -> None:
    world.fail_with = KeyError("secret")
    sentence, *_ = LabelHandlers(studio.labeling).voter(Choice.A)("c", request_of_ann)
    assert "secret" not in sentence and INTERNAL.split(";")[0] in sentence
    assert "secret" in caplog.text


async def test_undo_brings_the_pair_back_votable(studio: Any, request_of_ann: Any) -> None:
    handlers = LabelHandlers(studio.labeling)
    await collect(handlers.resume(request_of_ann))
    judged = studio.world.open.id
    handlers.voter(Choice.A)(judged, request_of_ann)
    await collect(handlers.resume(request_of_ann))
    update = handlers.undo(request_of_ann)
    assert update[ID_OUTPUT] == judged
    assert interactive(update) == {True}


def test_nothing_to_undo_is_a_sentence_and_changes_nothing_else(studio: Any, request_of_ann: Any) -> None:
    update = LabelHandlers(studio.labeling).undo(request_of_ann)
    assert update[4] == "There is no vote to undo"
    assert len(update) == NUM_OUTPUTS


async def test_a_model_that_loads_is_said_and_offers_a_retry(
    world: World, studio: Any, request_of_ann: Any
) -> None:
    world.engine = replace(world.engine, state="starting", detail="Loading the model")
    (update,) = await collect(LabelHandlers(studio.labeling).resume(request_of_ann))
    assert update[4] == "Loading the model"
    assert update[5]["visible"] is True
