"""The components that pages are made of, with the options that safety and looks demand."""

from typing import Any

import gradio as gr

from dpo_studio.ui.markup import Html, element


def board(value: str = "", **options: Any) -> Any:
    """HTML of ours. Only `Html` may ever be its value: it is put into the page as it is."""
    return gr.HTML(Html(value), padding=False, apply_default_css=False, **options)


def heading(text: str) -> Any:
    """A section's title."""
    return board(element("h2", text))


def prose(elem_id: str, elem_class: str) -> Any:
    """Markdown. No formulas: their delimiters could swallow a code fence (see safe_text)."""
    return gr.Markdown(elem_id=elem_id, elem_classes=elem_class, latex_delimiters=[], line_breaks=True)


def notice() -> Any:
    """The one line in which a page speaks; `studio.js` makes it a polite live region."""
    return prose("notice", "ds-notice")


def composer(label: str, placeholder: str, elem_id: str) -> Any:
    """A box for a prompt. Enter sends, Shift+Enter breaks the line."""
    return gr.Textbox(
        placeholder=placeholder,
        label=label,
        lines=1,
        max_lines=6,
        max_length=32_000,
        container=False,
        scale=8,
        elem_id=elem_id,
    )


def hidden_text() -> Any:
    """A value that travels with the page. Client data like any other: services check it."""
    return gr.Textbox("", visible=False)
