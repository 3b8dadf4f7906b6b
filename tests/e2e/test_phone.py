"""The label page on a phone: everything that labeling needs is on the first screen and in reach."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.e2e.pages import LabelPage, wait_until
from tests.ui.serving import Served

pytestmark = [pytest.mark.e2e, pytest.mark.integration]
SIZES = [(390, 844), (360, 740)]


@pytest.fixture(params=SIZES, ids=lambda size: "x".join(map(str, size)))
def phone(browser: Browser, served: Served, request: pytest.FixtureRequest) -> Iterator[LabelPage]:
    """The label page with one vote given, at its top."""
    width, height = request.param
    context = browser.new_context(viewport={"width": width, "height": height})
    label = LabelPage(context.new_page(), served.url)
    label.open()
    label.wait_for_pair()
    label.vote("a")
    yield label
    context.close()


def test_own_prompt_both_answers_undo_and_votes_share_the_first_screen(phone: LabelPage) -> None:
    """The own prompt stood below everything, and half of Undo below the row of votes."""
    order = ["own-prompt", "pane-a", "pane-b", "undo", "votes"]
    places = [phone.place_of(part) for part in order]
    ends = [place["y"] + place["height"] for place in places]
    assert all(end <= below["y"] for end, below in zip(ends, places[1:], strict=False)), list(
        zip(order, places, strict=True)
    )
    window = phone.page.viewport_size
    assert window is not None and ends[-1] <= window["height"]


def test_own_prompt_and_its_button_stand_side_by_side(phone: LabelPage) -> None:
    box, button = phone.place_of("own-prompt"), phone.place_of("ask")
    assert box["x"] + box["width"] <= button["x"]
    assert abs(box["y"] - button["y"]) < 10
    assert phone.overflow_px == 0


def test_undo_stays_in_reach_wherever_the_page_is_scrolled(phone: LabelPage) -> None:
    before = phone.place_of("undo")
    phone.page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    assert phone.place_of("undo") == before
    first = phone.answers
    phone.undo()
    wait_until(phone.page, lambda: phone.answers != first)


def test_an_answer_with_more_below_fades_until_its_end_is_reached(
    browser: Browser, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pane cut off in the middle of a line looked like an answer that ends there."""
    monkeypatch.setattr(
        "tests.ui.fakes.answer_text", lambda _prompt, _version, seed: "word " * (200 if seed % 2 else 3)
    )
    context = browser.new_context(viewport={"width": 390, "height": 844})
    label = LabelPage(context.new_page(), served.url)
    served.world.word_s = 0.0
    label.open()
    label.wait_for_pair()
    assert not label.says_there_is_more("pane-a"), "the short answer"
    assert label.says_there_is_more("pane-b"), "the long one"
    label.scroll_pane_to_its_end("pane-b")
    wait_until(label.page, lambda: not label.says_there_is_more("pane-b"))
    context.close()
