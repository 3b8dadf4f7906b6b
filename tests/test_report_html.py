"""The compare page: complete in itself, hostile text stays text, changes are marked."""

import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from dpo_studio.domain.chat import Message
from dpo_studio.report_html import ComparedPrompt, ComparisonReport, render

HOSTILE = "<script>alert(1)</script><img src=//evil.example onerror=alert(1)>\"'&lt;"


class Page(HTMLParser):
    """Tags, attributes and the text of each element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.append((self._open[-1] if self._open else "", data))

    def text_in(self, tag: str) -> list[str]:
        return [text for where, text in self.texts if where == tag]


def report(
    *answers: str, versions: tuple[str, ...] = ("base", "v1"), prompt: str = "Hi?"
) -> ComparisonReport:
    return ComparisonReport(
        model="starter",
        versions=versions,
        prompts=(ComparedPrompt((Message("user", prompt),), answers),),
        sampling="temperature 0.9, seed 0",
        created_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    )


def test_changed_words_are_marked_against_the_first_version() -> None:
    page = Page(render(report("a big dog", "a small dog")))
    assert page.text_in("del") == ["big"]
    assert page.text_in("ins") == ["small"]


def test_the_first_version_is_shown_unmarked_and_equal_answers_too() -> None:
    page = Page(render(report("same words", "same words", "other words", versions=("base", "v1", "v2"))))
    assert page.text_in("div").count("same words") == 2
    assert page.text_in("del") == ["same"]


def test_hostile_text_stays_text_everywhere() -> None:
    hostile = report(HOSTILE, HOSTILE + " more", versions=("<b>v1</b>", "<i>v2</i>"), prompt=HOSTILE)
    page = Page(render(hostile))
    assert not {"script", "img", "b", "i"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert any(HOSTILE in text for text in page.text_in("blockquote"))


def test_the_page_needs_nothing_from_outside() -> None:
    html = render(report("one", "two"))
    page = Page(html)
    assert not {"link", "script", "img", "iframe", "object", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href", "srcset", "action")]
    assert not re.search(r"url\(|@import|https?://", html)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes


def test_the_summary_counts_words_and_equal_answers() -> None:
    page = Page(render(report("one two three four", "one two")))
    assert page.text_in("td") == ["4.0", "–", "2.0", "0 of 1"]


def test_a_conversation_shows_every_turn_with_its_role() -> None:
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Go"),
    )
    prompt = ComparedPrompt(turns, ("x", "y"))
    page = Page(render(ComparisonReport("m", ("base", "v1"), (prompt,), "greedy", datetime.now(UTC))))
    assert [t for t in page.text_in("span") if not t.endswith("word")] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_an_empty_answer_is_said_to_be_empty() -> None:
    assert "no text" in Page(render(report("", ""))).text_in("span")


def test_no_prompts_make_a_page_without_dividing_by_zero() -> None:
    empty = ComparisonReport("m", ("base",), (), "greedy", datetime.now(UTC))
    assert "0 prompts" in render(empty)


def test_answers_must_match_versions() -> None:
    with pytest.raises(AssertionError):
        report("only one")
