"""HTML that pages make from data holds the data as text, whatever the data is."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.ui.markup import Html, element, join


class Seen(HTMLParser):
    """What a parser finds."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text())
def test_any_child_text_is_read_back_as_text(text: str) -> None:
    seen = Seen(element("p", text))
    assert [tag for tag, _ in seen.tags] == ["p"]
    assert seen.text == text


@given(st.text())
def test_any_attribute_value_stays_inside_its_attribute(value: str) -> None:
    seen = Seen(element("button", "x", data_name=value))
    assert seen.tags == [("button", {"data-name": value})]


def test_html_of_ours_nests() -> None:
    assert element("p", element("strong", "1 < 2"), " & more", cls="a") == (
        '<p class="a"><strong>1 &lt; 2</strong> &amp; more</p>'
    )


def test_an_absent_attribute_leaves_no_trace_and_a_true_one_its_name() -> None:
    assert element("div", hidden=True, id=None, title=False) == "<div hidden></div>"


def test_joining_escapes_plain_strings_only() -> None:
    assert join("<", Html("<p></p>")) == "&lt;<p></p>"


@pytest.mark.parametrize("name", ["script", "img", "iframe", "style", "p onclick"])
def test_elements_that_could_act_are_refused(name: str) -> None:
    with pytest.raises(AssertionError):
        element(name, "x")


@pytest.mark.parametrize("attribute", ["onclick", "style", "src"])
def test_attributes_that_could_act_are_refused(attribute: str) -> None:
    with pytest.raises(AssertionError):
        element("p", "x", **{attribute: "y"})
