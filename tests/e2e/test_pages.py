"""The pages in a real browser: they work by mouse and by key, and nothing leaves the machine."""

from dataclasses import replace

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.conftest import Watched
from tests.e2e.pages import ChatPage, ComparePage, LabelPage, RoundsPage, StudioPage, wait_until
from tests.ui.fakes import READY
from tests.ui.payloads import PAYLOADS
from tests.ui.serving import Served

pytestmark = [pytest.mark.e2e, pytest.mark.integration]

PAGES = (LabelPage, ChatPage, ComparePage, RoundsPage)
KEYS = {"1": "a", "2": "b", "3": "tie", "4": "both_bad", " ": "skip"}


@pytest.fixture
def label(page: Page, served: Served) -> LabelPage:
    opened = LabelPage(page, served.url)
    opened.open()
    opened.wait_for_pair()
    return opened


def votes(served: Served) -> list[str]:
    return [str(call[3]) for call in served.world.calls if call[0] == "vote"]


def test_every_page_opens_quietly_and_asks_nobody_else(page: Page, served: Served, watched: Watched) -> None:
    for kind in PAGES:
        opened = kind(page, served.url)
        opened.open()
        if isinstance(opened, LabelPage):
            opened.wait_for_pair()
        page.wait_for_timeout(700)
    assert watched.errors == []
    assert watched.foreign_requests == []
    assert not [url for url in watched.requests if "heartbeat" in url]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_no_page_is_wider_than_the_screen(browser: Browser, served: Served, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)  # type: ignore[arg-type]
    page = context.new_page()
    for kind in PAGES:
        opened = kind(page, served.url)
        opened.open()
        assert opened.overflow_px == 0, kind
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    channels = [int(part) for part in background.removeprefix("rgb(").removesuffix(")").split(",")]
    assert (max(channels) < 64) == (scheme == "dark")
    context.close()


def test_each_key_votes_and_brings_the_next_pair(label: LabelPage, served: Served) -> None:
    for key in KEYS:
        before = label.answers
        label.press(key)
        label.wait_for_another(before)
    assert votes(served) == list(KEYS.values())


def test_a_click_votes_reveals_and_brings_the_next_pair(label: LabelPage) -> None:
    label.vote("b")
    assert label.notice == "B is better – both answers were written by base."
    wait_until(label.page, lambda: label.votes_today == 1)


def test_keys_are_letters_while_typing(label: LabelPage, served: Served) -> None:
    box = label.page.locator("#own-prompt textarea")
    box.click()
    label.page.keyboard.type("1 2 3 4")
    label.page.wait_for_timeout(600)
    assert votes(served) == []
    expect(box).to_have_value("1 2 3 4")


def test_after_a_click_space_skips_and_does_not_click_again(label: LabelPage, served: Served) -> None:
    label.vote("a")
    before = label.answers
    label.press(" ")
    label.wait_for_another(before)
    assert votes(served) == ["a", "skip"]


def test_who_tabs_to_a_button_presses_it_with_space(label: LabelPage, served: Served) -> None:
    label.page.locator("#vote-b").focus()
    label.page.keyboard.press("Tab")
    before = label.answers
    label.press(" ")
    label.wait_for_another(before)
    assert votes(served) == ["tie"]


def test_a_second_press_at_once_does_not_judge_the_next_pair(label: LabelPage, served: Served) -> None:
    before = label.answers
    label.press("1")
    label.page.keyboard.press("1")
    label.page.keyboard.press("2")
    label.wait_for_another(before)
    label.page.wait_for_timeout(300)
    assert votes(served) == ["a"]


def test_modified_and_repeated_keys_do_not_vote(label: LabelPage, served: Served) -> None:
    for keys in ("Control+1", "Alt+2", "Meta+3", "Shift+4", "ArrowLeft", "ArrowRight"):
        label.press(keys)
    assert votes(served) == []


def test_undo_brings_the_judged_pair_back_by_key_and_by_button(label: LabelPage) -> None:
    first = label.answers
    label.vote("a")
    label.press("Control+z")
    wait_until(label.page, lambda: label.answers == first)
    label.expect_notice("Vote taken back")
    label.wait_for_pair()
    label.vote("b")
    label.undo()
    wait_until(label.page, lambda: label.answers == first)


def test_an_own_prompt_is_asked_with_enter_and_the_keys_vote_again(label: LabelPage, served: Served) -> None:
    before = served.world.open
    label.ask("Tell me about tea & biscuits <b>")
    # The server's word first: the buttons of the old pair are still enabled when the first words come.
    wait_until(label.page, lambda: served.world.open not in (None, before))
    label.wait_for_pair()
    assert label.prompt == "Tell me about tea & biscuits <b>"
    expect(label.page.locator("#own-prompt textarea")).to_have_value("")
    answers = label.answers
    label.press("2")
    label.wait_for_another(answers)
    assert votes(served) == ["b"]


def test_a_reload_resumes_the_open_pair(label: LabelPage) -> None:
    before = (label.prompt, label.answers)
    label.open()
    label.wait_for_pair()
    assert (label.prompt, label.answers) == before


def test_the_vote_buttons_stay_where_they_are(label: LabelPage) -> None:
    places = []
    for _ in range(3):
        places.append(label.button("a").bounding_box())
        label.vote("tie")
    assert places[0] == places[1] == places[2]


def test_while_the_model_loads_the_page_says_so_and_goes_on_by_itself(page: Page, served: Served) -> None:
    served.world.engine = replace(READY, state="starting", detail="Loading the model", progress=0.4)
    label = LabelPage(page, served.url)
    label.open()
    expect(page.locator("#ds-engine")).to_contain_text("Loading the model")
    label.expect_notice("Loading the model")
    served.world.engine = READY
    label.wait_for_pair()
    expect(page.locator("#ds-engine")).to_be_hidden()


def test_chat_streams_names_the_version_and_starts_afresh(page: Page, served: Served) -> None:
    chat = ChatPage(page, served.url)
    chat.open()
    chat.say("Hello there")
    chat.wait_for_answer(1)
    chat.say("And more")
    chat.wait_for_answer(2)
    assert chat.versions == ["base", "base"]
    chat.start_afresh()
    wait_until(page, lambda: chat.answers == [])


def test_stop_keeps_what_was_written_and_the_chat_goes_on(page: Page, served: Served) -> None:
    served.world.word_s = 0.15
    chat = ChatPage(page, served.url)
    chat.open()
    chat.say("A long one")
    wait_until(page, lambda: bool(chat.answers) and len(chat.answers[0].split()) > 3)
    chat.stop()
    page.wait_for_timeout(600)
    stopped = chat.answers
    page.wait_for_timeout(800)
    assert chat.answers == stopped
    served.world.word_s = 0.0
    chat.say("Next")
    chat.wait_for_answer(2)
    asked = [call for call in served.world.calls if call[0] == "stream"][-1][1]
    assert [message.role for message in asked] == ["user", "assistant", "user"]


def test_compare_streams_both_sides_marks_words_and_replays(page: Page, served: Served) -> None:
    served.world.word_s = 0.05
    compare = ComparePage(page, served.url)
    compare.open()
    compare.page.locator("#compare-prompt textarea").fill("How is tea made?")
    compare.page.locator("#compare-run").click()
    wait_until(page, lambda: all(0 < len(text.split()) < 30 for text in compare.answers))
    compare.run("How is tea made?")
    assert compare.answers[0] == compare.answers[1]
    assert compare.captions[0].startswith("base – ")
    served.world.word_s = 0.0
    compare.show_differences()
    expect(page.locator("#left-diff")).to_be_visible()
    expect(page.locator("#left-answer")).to_be_hidden()
    compare.replay()


def test_a_round_is_started_watched_promoted_compared_and_rolled_back(
    page: Page, served: Served, watched: Watched
) -> None:
    served.world.new_pairs = 12
    rounds = RoundsPage(page, served.url)
    rounds.open()
    rounds.train_now()
    rounds.wait_for_status(1, "training")
    wait_until(page, lambda: rounds.num_curves == 2)
    rounds.wait_for_status(1, "promoted")
    rounds.expect_live("v1")
    compare = ComparePage(page, served.url)
    compare.open()
    compare.run("Hello")
    assert [caption.split()[0] for caption in compare.captions] == ["base", "v1"]
    assert compare.answers[0] != compare.answers[1]
    rounds.open()
    rounds.roll_back()
    rounds.expect_live("base")
    rounds.make_live("v1")
    rounds.expect_notice("v1 is live now")
    assert watched.errors == []


def test_with_a_manual_gate_the_page_waits_for_a_person(page: Page, served: Served) -> None:
    served.world.new_pairs = 12
    rounds = RoundsPage(page, served.url)
    rounds.open()
    rounds.set_schedule(interval=7, min_pairs=9, gate="ask me first", is_on=False)
    assert served.world.schedule.gate == "manual" and not served.world.schedule.enabled
    rounds.train_now()
    rounds.wait_for_status(1, "waiting for you")
    assert rounds.live_version == "base"
    rounds.decide("Promote")
    rounds.expect_live("v1")
    rounds.wait_for_status(1, "promoted")


@pytest.mark.parametrize("kind", [LabelPage, ChatPage, ComparePage])
def test_hostile_answers_stay_text(
    page: Page, served: Served, watched: Watched, monkeypatch: pytest.MonkeyPatch, kind: type[StudioPage]
) -> None:
    # The answers carry every payload, with code blocks around some that only look like code.
    tricks = (
        "```\n~~~\n```\n",
        '[a]: /b "\n```\n"\n',
        "http://a.example/`",
        "| `x | ",
        "1. x\n   ```\n",
        "$$\n```\n$$\n",
    )
    hostile = "\n\n".join([*PAYLOADS, *(trick + PAYLOADS[2] for trick in tricks), "the end"])
    monkeypatch.setattr("tests.ui.fakes.answer_text", lambda *_: hostile)
    opened = kind(page, served.url)
    opened.open()
    if isinstance(opened, ChatPage):
        opened.say(hostile)
        opened.wait_for_answer(1)
    elif isinstance(opened, ComparePage):
        opened.run(PAYLOADS[1])
        opened.show_differences()
        opened.replay()
    else:
        assert isinstance(opened, LabelPage)
        opened.wait_for_pair()
    page.wait_for_timeout(500)
    assert page.evaluate("window.pwned") is None
    assert watched.foreign_requests == []
    made = ("img", "iframe", "video", "form", "svg[onload]", "style:not(svg style)", "a[href^=javascript]")
    found = page.locator(", ".join(f"main {tag}" for tag in made))
    assert [found.nth(index).evaluate("node => node.outerHTML") for index in range(found.count())] == []


def test_controls_have_names_and_the_notice_is_a_live_region(label: LabelPage) -> None:
    page = label.page
    expect(page.locator("#notice")).to_have_attribute("aria-live", "polite")
    expect(page.get_by_role("region", name="Answer A")).to_be_visible()
    expect(page.get_by_role("textbox", name="Your own prompt")).to_be_visible()
    expect(page.locator("#vote-a")).to_have_attribute("aria-keyshortcuts", "1")
    expect(page.get_by_role("navigation", name="Pages").get_by_role("link")).to_have_count(4)
