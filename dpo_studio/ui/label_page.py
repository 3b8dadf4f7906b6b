"""Label: a prompt, two answers, a vote, the next pair.

Each handler calls one method of LabelingService and shows what it returns. A vote is on disk before
anything is shown; the next pair is an event of its own after it. The browser holds the comparison's id and
nothing else, and the service checks it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import Choice
from dpo_studio.services.labeling import LabelingService
from dpo_studio.services.studio import Studio
from dpo_studio.ui.board import board, composer, heading, hidden_text, notice, prose
from dpo_studio.ui.identity import current_labeler
from dpo_studio.ui.label_screen import (
    CHOICE_NAMES,
    LabelScreen,
    render_comparison,
    render_nothing,
    render_progress,
    render_vote,
)
from dpo_studio.ui.safe_text import plain_md
from dpo_studio.ui.streams import paced
from dpo_studio.ui.trouble import sentence_of

Updates = tuple[Any, ...]
NO_PROMPT = "Write a prompt first."
UNDONE = "Vote taken back. Choose again."


class LabelHandlers:
    """What the page's events do, as plain functions of their inputs and the request."""

    def __init__(self, labeling: LabelingService) -> None:
        self._labeling = labeling

    async def resume(self, request: gr.Request) -> AsyncGenerator[Updates, None]:
        """The comparison left open, else the next one; the sentence on the page stays."""
        before: LabelScreen | None = None
        source = self._labeling.stream_next(current_labeler(request))
        try:
            async with aclosing(paced(source)) as views:
                async for view in views:
                    screen = render_comparison(view)
                    yield to_updates(screen, before)
                    before = screen
        except Exception as error:
            yield to_updates(render_nothing(sentence_of(error)))

    async def ask(self, prompt: str, request: gr.Request) -> AsyncGenerator[Updates, None]:
        """Two answers to the visitor's own prompt; the box empties once they are on their way.

        When it fails the prompt stays in the box, or comes back to it, and the pair shown before stays.
        """
        text = str(prompt)
        if not text.strip():
            yield (*_only_notice(NO_PROMPT), gr.skip())
            return
        is_emptied = False
        try:
            source = self._labeling.stream_next(current_labeler(request), (Message("user", text),))
            before: LabelScreen | None = None
            async with aclosing(paced(source)) as views:
                async for view in views:
                    # Until the first word it may still be refused; the pair on the page is worth more.
                    if before is None and not (view.a or view.b):
                        continue
                    screen = render_comparison(view, "")
                    # Emptied once: the visitor may type the next prompt meanwhile.
                    yield (*to_updates(screen, before), gr.skip() if is_emptied else "")
                    before, is_emptied = screen, True
        except Exception as error:
            before_it = await self._back(sentence_of(error), is_emptied, request)
            yield (*before_it, text if is_emptied else gr.skip())

    async def _back(self, sentence: str, is_replaced: bool, request: gr.Request) -> Updates:
        """What the page shows after a failed own prompt: what stood there before, and the reason."""
        notice = plain_md(sentence)
        if not is_replaced:
            return _only_notice(notice)
        open_pair = await asyncio.to_thread(self._labeling.current, current_labeler(request))
        screen = render_comparison(open_pair, notice) if open_pair else render_nothing(sentence)
        return to_updates(screen)

    def voter(self, choice: Choice) -> Callable[[str, gr.Request], Updates]:
        """The handler of one vote button."""

        def vote(comparison_id: str, request: gr.Request) -> Updates:
            """Store the vote, reveal who wrote what; the buttons rest until the next pair is there."""
            try:
                view = self._labeling.vote(current_labeler(request), str(comparison_id), choice)
            except Exception as error:
                return (plain_md(sentence_of(error)), *_buttons(False))
            return (render_vote(view), *_buttons(False))

        return vote

    def undo(self, request: gr.Request) -> Updates:
        """Take the last vote back and show its pair again."""
        try:
            view = self._labeling.undo(current_labeler(request))
        except Exception as error:
            return _only_notice(plain_md(sentence_of(error)))
        return to_updates(render_comparison(view, UNDONE))

    def progress(self, request: gr.Request) -> str:
        """Counts, as HTML of ours."""
        try:
            return render_progress(self._labeling.progress(current_labeler(request)))
        except Exception as error:
            sentence_of(error)
            return ""


def to_updates(screen: LabelScreen, before: LabelScreen | None = None) -> Updates:
    """Values for the page's outputs; what is as `before` is skipped, so that streams stay small."""
    buttons = _buttons(screen.can_vote)
    if before is not None and before.can_vote == screen.can_vote:
        buttons = tuple(gr.skip() for _ in buttons)
    same_prompt = before is not None and before.prompt == screen.prompt
    return (
        gr.skip() if same_prompt else screen.prompt,
        screen.a,
        screen.b,
        screen.comparison_id,
        gr.skip() if screen.notice is None else screen.notice,
        gr.update(visible=screen.can_fetch) if before is None else gr.skip(),
        *buttons,
    )


def build(pages: Any, studio: Studio) -> None:
    """Lay the page out and wire it."""
    handlers = LabelHandlers(studio.labeling)
    with gr.Row(elem_classes="ds-composer", equal_height=True):
        own_prompt = composer(
            "Your own prompt", "Ask something of your own, or vote on what the queue brings", "own-prompt"
        )
        ask = gr.Button("Get two answers", scale=0, min_width=190, elem_id="ask")
    prompt = prose("label-prompt", "ds-prompt")
    with gr.Row(elem_classes="ds-panes"):
        pane_a = _pane("A", "pane-a")
        pane_b = _pane("B", "pane-b")
    with gr.Row(elem_id="votes", elem_classes="ds-votes"):
        buttons = {
            choice: gr.Button(name, interactive=False, elem_id=f"vote-{choice.value}", min_width=0)
            for choice, name in CHOICE_NAMES.items()
        }
    with gr.Row(elem_classes="ds-notice-row"):
        sentence = notice()
        fetch = gr.Button("Next from the queue", visible=False, scale=0, min_width=170, elem_id="fetch")
        undo = gr.Button("Undo", scale=0, min_width=140, size="sm", elem_id="undo")
    progress = board(elem_id="progress")
    comparison_id = hidden_text()

    outputs = [prompt, pane_a, pane_b, comparison_id, sentence, fetch, *buttons.values()]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    at_once: dict[str, Any] = {"queue": False, **quiet}
    shown = [
        pages.load(handlers.resume, None, outputs, **quiet),
        fetch.click(handlers.resume, None, outputs, **quiet),
        gr.on([ask.click, own_prompt.submit], handlers.ask, own_prompt, [*outputs, own_prompt], **quiet),
    ]
    pages.load(handlers.progress, None, progress, **at_once)
    for choice, button in buttons.items():
        voted = button.click(handlers.voter(choice), comparison_id, [sentence, *buttons.values()], **at_once)
        voted.then(handlers.resume, None, outputs, **quiet)
        voted.then(handlers.progress, None, progress, **at_once)
    undone = undo.click(handlers.undo, None, outputs, cancels=shown, **at_once)
    undone.then(handlers.progress, None, progress, **at_once)


def _pane(name: str, elem_id: str) -> Any:
    with gr.Column(elem_classes="ds-pane", min_width=280):
        heading(name)
        return prose(elem_id, "ds-answer")


def _buttons(can_vote: bool) -> Updates:
    return tuple(gr.update(interactive=can_vote) for _ in CHOICE_NAMES)


def _only_notice(sentence: str) -> Updates:
    return (*(gr.skip() for _ in range(4)), sentence, *(gr.skip() for _ in range(1 + len(CHOICE_NAMES))))
