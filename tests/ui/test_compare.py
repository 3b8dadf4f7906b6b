"""Compare: same prompt and seed to both sides, marked differences, refusals as sentences."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.errors import BadInput
from dpo_studio.services.views import GenerationView, VersionView
from dpo_studio.ui.compare_page import CompareHandlers
from dpo_studio.ui.compare_screen import (
    ReplayRow,
    parse_pinned,
    render_diff,
    render_pair,
    render_replay,
    render_versions,
    sampling_of,
)
from tests.ui.fakes import World
from tests.ui.payloads import PAYLOADS
from tests.ui.test_markup import Seen

V1 = VersionView("v1", 1, datetime(2026, 1, 1, tzinfo=UTC), True, True, 40, 0.7)
BASE = VersionView("base", None, None, False, True, 0, None)


async def collect(updates: Any) -> list[tuple[Any, ...]]:
    return [update async for update in updates]


@pytest.fixture
def handlers(studio: Any, world: World) -> CompareHandlers:
    world.versions.append(V1)
    world.live = "v1"
    return CompareHandlers(studio.generation, studio.deployment, 64)


def test_the_menus_begin_with_base_against_live() -> None:
    choices = render_versions([BASE, V1])
    assert (choices.left, choices.right, choices.hint) == ("base", "v1", "")
    assert choices.choices == [("v1 (live)", "v1"), ("base", "base")]


def test_before_the_first_promotion_the_page_says_that_both_sides_are_the_same() -> None:
    assert (
        "both sides are the same"
        in render_versions([VersionView("base", None, None, True, True, 0, None)]).hint
    )


@given(st.text(), st.text())
def test_marked_texts_read_as_the_answers_themselves(left: str, right: str) -> None:
    marked = render_diff(left, right)
    assert (Seen(marked[0]).text, Seen(marked[1]).text) == (left, right)
    assert {tag for tag, _ in Seen(marked[0]).tags} <= {"del"}
    assert {tag for tag, _ in Seen(marked[1]).tags} <= {"ins"}


def test_differences_wait_for_both_answers() -> None:
    done = GenerationView(("a",), "base", True, (1,), ("stop",), 1)
    half = GenerationView(("b",), "v1", False)
    assert render_pair(done, half).left_diff == ""
    assert render_pair(done, None).right_caption == ""
    assert (
        render_pair(done, GenerationView(("b",), "v1", True, (1,), ("stop",), 1)).left_diff == "<del>a</del>"
    )


def test_captions_name_version_and_length() -> None:
    screen = render_pair(GenerationView(("a",), "v1", True, (12,), ("stop",), 1), None)
    assert screen.left_caption == "**v1** – 12 tokens"


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_becomes_an_element_of_the_replay(payload: str) -> None:
    seen = Seen(render_replay([ReplayRow(payload, payload, "other")], payload, "v1"))
    assert {tag for tag, _ in seen.tags} <= {
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "del",
        "ins",
    }


@pytest.mark.parametrize(
    ("temperature", "seed"), [("hot", 1), (0.7, None), (float("nan"), 1), (9, 1), (0.7, -1), (True, 1)]
)
def test_values_that_do_not_fit_are_refused(temperature: Any, seed: Any) -> None:
    with pytest.raises(BadInput):
        sampling_of(temperature, seed, 64)


def test_pinned_prompts_are_lines() -> None:
    assert parse_pinned(" a \n\n b") == ("a", "b")
    with pytest.raises(BadInput, match="found 0"):
        parse_pinned("\n")
    with pytest.raises(BadInput, match="found 21"):
        parse_pinned("x\n" * 21)


def test_loading_fills_both_menus(handlers: CompareHandlers) -> None:
    left, right, hint = handlers.versions()
    assert (left["value"], right["value"], hint) == ("base", "v1", "")


async def test_both_versions_get_the_same_prompt_and_seed_and_answer_in_full(
    handlers: CompareHandlers, world: World
) -> None:
    seen = await collect(handlers.compare("Hello", "base", "v1", 5, 0.5))
    asked = [call for call in world.calls if call[0] == "stream"]
    assert [call[2] for call in asked] == ["base", "v1"]
    assert asked[0][3] == asked[1][3]
    assert asked[0][3].seed == 5
    *_, left_diff, right_diff, notice = seen[-1]
    assert left_diff and right_diff and notice == ""


async def test_an_unknown_version_is_a_sentence(handlers: CompareHandlers) -> None:
    seen = await collect(handlers.compare("Hello", "base", "v9<b>", 5, 0.5))
    assert "version" in seen[-1][-1] and "<" not in seen[-1][-1]


async def test_a_replay_fills_the_table_row_by_row(handlers: CompareHandlers) -> None:
    seen = await collect(handlers.replay("one\ntwo", "base", "v1", 5, 0.5))
    waiting = [table.count(">…<") for table, _ in seen]
    assert waiting == [4, 2, 0]


async def test_a_replay_without_prompts_is_a_sentence(handlers: CompareHandlers) -> None:
    (update,) = await collect(handlers.replay("", "base", "v1", 5, 0.5))
    assert "pinned prompts" in update[1]
