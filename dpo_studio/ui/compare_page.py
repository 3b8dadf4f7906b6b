"""Compare: two versions answer the same prompt with the same seed, side by side, at once."""

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import gradio as gr

from dpo_studio import starter
from dpo_studio.domain.chat import Message, SamplingParams
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.generation import GenerationService
from dpo_studio.services.studio import Studio
from dpo_studio.services.views import GenerationView
from dpo_studio.ui.board import board, composer, heading, notice, prose
from dpo_studio.ui.compare_screen import (
    CompareScreen,
    ReplayRow,
    parse_pinned,
    render_pair,
    render_replay,
    render_versions,
    sampling_of,
)
from dpo_studio.ui.safe_text import plain_md
from dpo_studio.ui.streams import side_by_side
from dpo_studio.ui.trouble import sentence_of

Updates = tuple[Any, ...]
Pair = tuple[GenerationView | None, ...]


class CompareHandlers:
    """What the page's events do."""

    def __init__(self, generation: GenerationService, deployment: DeploymentService, max_tokens: int) -> None:
        self._generation = generation
        self._deployment = deployment
        self._max_tokens = max_tokens

    def versions(self) -> Updates:
        """Fill both menus."""
        try:
            choices = render_versions(self._deployment.versions())
        except Exception as error:
            return gr.skip(), gr.skip(), plain_md(sentence_of(error))
        return (
            gr.update(choices=choices.choices, value=choices.left),
            gr.update(choices=choices.choices, value=choices.right),
            choices.hint,
        )

    async def compare(
        self, prompt: str, left: str, right: str, seed: float, temperature: float
    ) -> AsyncGenerator[Updates, None]:
        """Both answers as they are written, then their differences."""
        try:
            sampling = sampling_of(temperature, seed, self._max_tokens)
            async with aclosing(self._stream(str(prompt), str(left), str(right), sampling)) as pairs:
                async for pair in pairs:
                    yield (*to_updates(render_pair(*pair)), "")
        except Exception as error:
            yield (*(gr.skip() for _ in range(6)), plain_md(sentence_of(error)))

    async def replay(
        self, pinned: str, left: str, right: str, seed: float, temperature: float
    ) -> AsyncGenerator[Updates, None]:
        """Every pinned prompt through both versions, one after the other."""
        try:
            sampling = sampling_of(temperature, seed, self._max_tokens)
            rows = [ReplayRow(prompt) for prompt in parse_pinned(str(pinned))]
            yield render_replay(rows, str(left), str(right)), ""
            for index, row in enumerate(rows):
                async with aclosing(self._stream(row.prompt, str(left), str(right), sampling)) as pairs:
                    async for pair in pairs:
                        texts = [view.texts[0] if view and view.done else None for view in pair]
                        if all(text is not None for text in texts):
                            rows[index] = replace(row, left=texts[0], right=texts[1])
                yield render_replay(rows, str(left), str(right)), ""
        except Exception as error:
            yield gr.skip(), plain_md(sentence_of(error))

    def _stream(
        self, prompt: str, left: str, right: str, sampling: SamplingParams
    ) -> AsyncGenerator[Pair, None]:
        messages = (Message("user", prompt),)
        return side_by_side(
            [
                self._generation.stream(messages, version=version, sampling=sampling)
                for version in (left, right)
            ]
        )


def to_updates(screen: CompareScreen) -> Updates:
    """Values for the panes."""
    return (
        screen.left_caption,
        screen.right_caption,
        screen.left,
        screen.right,
        screen.left_diff,
        screen.right_diff,
    )


def build(pages: Any, studio: Studio) -> None:
    """Lay the page out and wire it."""
    pinned_prompts = starter.pinned_prompts()
    handlers = CompareHandlers(studio.generation, studio.deployment, studio.settings.max_tokens)
    prompt, run, chips = _composer(pinned_prompts)
    with gr.Row(elem_classes="ds-options"):
        left = gr.Dropdown(label="Left", choices=["base"], value="base", elem_id="left-version")
        right = gr.Dropdown(label="Right", choices=["base"], value="base", elem_id="right-version")
        seed = gr.Number(label="Seed", value=7, precision=0, minimum=0, elem_id="seed")
        temperature = gr.Number(
            label="Temperature", value=0.7, minimum=0, maximum=5, step=0.1, elem_id="temperature"
        )
        marks = gr.Checkbox(label="Show word differences", value=False, elem_id="show-diff", container=False)
    with gr.Row(elem_classes="ds-panes", elem_id="compare-panes"):
        left_pane = _pane("left")
        right_pane = _pane("right")
    sentence = notice()
    with gr.Row(elem_classes="ds-section-head"):
        heading("Pinned prompts")
        replay = gr.Button("Replay pinned set", scale=0, min_width=200, elem_id="replay")
    with gr.Accordion("Edit the pinned prompts, one a line", open=False):
        pinned = gr.Textbox(
            "\n".join(pinned_prompts),
            label="Pinned prompts",
            lines=6,
            max_lines=12,
            show_label=False,
            elem_id="pinned",
        )
    table = board(elem_id="replay-table")

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    settings = [left, right, seed, temperature]
    panes = [left_pane[0], right_pane[0], left_pane[1], right_pane[1], left_pane[2], right_pane[2], sentence]
    pages.load(handlers.versions, None, [left, right, sentence], queue=False, **quiet)
    gr.on([run.click, prompt.submit], handlers.compare, [prompt, *settings], panes, **quiet)
    for chip, text in chips:
        picked = chip.click(None, None, prompt, js=f"() => {json.dumps(text)}", **quiet)
        picked.then(handlers.compare, [prompt, *settings], panes, **quiet)
    replay.click(handlers.replay, [pinned, *settings], [table, sentence], **quiet)
    marks.change(None, marks, None, js="(on) => { window.dpoStudio.showDifferences(on); }", **quiet)


def _composer(pinned_prompts: Sequence[str]) -> tuple[Any, Any, list[tuple[Any, str]]]:
    with gr.Row(elem_classes="ds-composer", equal_height=True):
        prompt = composer("Prompt", "One prompt for both versions", "compare-prompt")
        run = gr.Button("Compare", variant="primary", scale=0, min_width=120, elem_id="compare-run")
    with gr.Row(elem_classes="ds-chips"):
        chips = [(gr.Button(text, size="sm", min_width=0, scale=0), text) for text in pinned_prompts]
    return prompt, run, chips


def _pane(side: str) -> tuple[Any, Any, Any]:
    with gr.Column(elem_classes="ds-pane", min_width=280):
        caption = prose(f"{side}-caption", "ds-caption")
        answer = prose(f"{side}-answer", "ds-answer")
        difference = board(elem_id=f"{side}-diff", elem_classes="ds-diff")
    return caption, answer, difference
