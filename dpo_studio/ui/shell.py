"""The frame around every page: theme, styles, scripts, header, and which page is where.

Builds one Blocks with four routes. The header holds only links and empty slots; `studio.js` fills the
slots from `GET /api/status`, as text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any

import gradio as gr

from dpo_studio.services.studio import Studio
from dpo_studio.ui import chat_page, compare_page, label_page, rounds_page
from dpo_studio.ui.board import board
from dpo_studio.ui.markup import Html, element

TITLE = "DPO Studio"
LINKS = (("Label", "./"), ("Chat", "./chat"), ("Compare", "./compare"), ("Rounds", "./rounds"))


def build(studio: Studio) -> Any:
    """All pages as one Blocks."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as pages, _frame("Label"):
        label_page.build(pages, studio)
    with _route(pages, "Chat"), _frame("Chat"):
        chat_page.build(studio)
    with _route(pages, "Compare"), _frame("Compare"):
        compare_page.build(pages, studio)
    with _route(pages, "Rounds"), _frame("Rounds"):
        rounds_page.build(pages, studio)
    return pages


def _route(pages: Any, name: str) -> Any:
    return pages.route(name, f"/{name.lower()}", show_in_navbar=False)


@contextmanager
def _frame(name: str) -> Iterator[None]:
    board(header(name), elem_id="ds-top")
    with gr.Column(elem_id=f"page-{name.lower()}", elem_classes="ds-page"):
        yield


def header(current: str) -> Html:
    """Brand, links to all pages, slots for the live version, the running round and the engine."""
    links = [
        element("a", name, href=href, aria_current="page" if name == current else None)
        for name, href in LINKS
    ]
    return element(
        "div",
        element(
            "header",
            element(
                "a", element("span", cls="ds-mark", aria_hidden="true"), TITLE, href="./", cls="ds-brand"
            ),
            element("nav", *links, aria_label="Pages"),
            element(
                "div",
                element("a", id="ds-round", href="./rounds", hidden=True),
                element("span", id="ds-live", title="The version that answers now", hidden=True),
                cls="ds-slots",
            ),
            cls="ds-header",
        ),
        element(
            "div",
            element("span", id="ds-engine-text"),
            element("progress", id="ds-engine-progress", max="1", aria_label="Model loading"),
            id="ds-engine",
            role="status",
            hidden=True,
        ),
    )


def theme() -> Any:
    """Gradio's plainest theme on system fonts; colours and sizes come from `studio.css`."""
    sans = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    sans += ["Apple Color Emoji", "Segoe UI Emoji", "Noto Color Emoji"]
    mono = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]
    return gr.themes.Base(font=sans, font_mono=mono, text_size="md", spacing_size="md", radius_size="md")


def head() -> str:
    """Styles and scripts of ours, inline, so that nothing is fetched.

    Not through Gradio's `css`: it would add a second copy of every rule, with a prefix that outranks some
    and breaks others.
    """
    scripts = "".join(f"<script>{_asset(name)}</script>" for name in ("studio.js", "rounds.js"))
    return f'<meta name="color-scheme" content="light dark"><style>{_asset("studio.css")}</style>{scripts}'


def _asset(name: str) -> str:
    return (files("dpo_studio.ui") / name).read_text("utf-8")
