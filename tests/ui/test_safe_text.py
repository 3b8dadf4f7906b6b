"""Text of models and users reaches the Markdown component without HTML, images or formulas of its own."""

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.ui.safe_text import plain_md, safe_md
from tests.ui.payloads import PAYLOADS

PIECES = (
    "~~~",
    "\n",
    " ",
    "    ",
    "<img src=x>",
    "</p>",
    "![a](b)",
    "[a]: /b",
    "|",
    "\\",
    "w",
    "&lt;",
    "<!--",
)
MARKDOWN = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)
FENCED = st.tuples(MARKDOWN, st.sampled_from(("```\n<b>\n```", "`a<b`")), MARKDOWN)


@given(st.text(alphabet=st.characters(exclude_characters="`\r")))
def test_without_backticks_there_is_no_tag_left(text: str) -> None:
    assert "<" not in safe_md(text)


@given(MARKDOWN)
def test_without_backticks_nothing_opens_a_tag_an_image_a_fence_or_a_definition(text: str) -> None:
    shown = safe_md(text)
    assert "<" not in shown
    assert "![" not in shown
    assert "\n~~~" not in shown and not shown.startswith("~~~")
    assert "]:" not in shown


@given(FENCED)
def test_at_most_the_code_itself_keeps_its_angle_bracket(parts: tuple[str, str, str]) -> None:
    before, code, after = parts
    assert safe_md(before + "\n\n" + code + "\n\n" + after).count("<") <= code.count("<")


@given(st.text(max_size=80))
def test_plain_words_survive_unchanged(text: str) -> None:
    words = re.sub(r"[^a-zA-Z0-9 ,.?]", "", text)
    assert safe_md(words) == words


@pytest.mark.parametrize(
    "code", ["```html\n<b>x</b>\n```", "`a < b`", "text\n\n```\n<i>\n```\nmore", "```py\nif a < b:"]
)
def test_code_stays_as_it_is_written(code: str) -> None:
    assert safe_md(code) == code


@pytest.mark.parametrize(
    "text",
    [
        "\\`<img src=x>\\`",
        "http://a.example/`<img src=x>`",
        "|a|b|\n|-|-|\n| `x | <img src=x> ` |",
        "1. x\n   ```\n<img src=x>\n   ```",
        "    ```\n<img src=x>",
        "```\na\n```~\n<img src=x>",
        "``<img src=x>`",
    ],
)
def test_what_only_looks_like_code_is_escaped(text: str) -> None:
    # Each of these is HTML to the browser's Markdown parser although a backtick stands before it.
    assert "<img" not in safe_md(text)


@pytest.mark.parametrize(
    ("text", "swallower"),
    [
        ("~~~\n```\n~~~\n<img src=x>", "\n~~~"),
        ('[a]: /b "\n```\n"\n<img src=x>', "]:"),
        ('[ `a]: /b "c`\n```\n"\n<img src=x>', "]:"),
    ],
)
def test_what_could_swallow_a_fence_is_taken_apart_before_it(text: str, swallower: str) -> None:
    # So the fence is a fence to the browser as well, and what follows it is code.
    assert swallower not in "\n" + safe_md(text).partition("```")[0]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_keeps_its_tag(payload: str) -> None:
    assert "<" not in safe_md(payload)


@given(st.text(max_size=200))
def test_plain_text_has_no_punctuation_that_markdown_could_read(text: str) -> None:
    shown = plain_md(text)
    assert not set(re.sub(r"&#\d+;", "", shown)) & set(string.punctuation)
    assert "\n" not in shown


@given(st.text(alphabet=string.printable, max_size=200))
def test_plain_text_decodes_to_the_words_that_went_in(text: str) -> None:
    decoded = re.sub(r"&#(\d+);", lambda match: chr(int(match[1])), plain_md(text))
    assert decoded == " ".join(text.split())
