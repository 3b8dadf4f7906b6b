"""Rounds: train now or by schedule, watch, judge, promote, roll back, choose how they train.

The live curve is drawn by `rounds.js` from the HTTP API; everything that changes the studio is a handler
here. After each of them the whole page is read afresh, as one action moves several parts.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

from dpo_studio.errors import BadInput
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.rounds import RoundService
from dpo_studio.services.studio import Studio
from dpo_studio.ui import training_form
from dpo_studio.ui.board import board, heading, notice
from dpo_studio.ui.identity import current_labeler
from dpo_studio.ui.markup import Html, element
from dpo_studio.ui.rounds_screen import RoundsScreen, render_rounds, schedule_of
from dpo_studio.ui.safe_text import plain_md
from dpo_studio.ui.trouble import sentence_of

Updates = tuple[Any, ...]
NUM_OUTPUTS = 7

# A button inside HTML of ours says what it wants; the handler decides whether it may.
_FORWARD_CLICKS = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-action]');
  if (button) trigger('click', { action: button.dataset.action, name: button.dataset.name });
});
"""


class RoundsHandlers:
    """What the page's events do. All that change something are refused or recorded under the caller."""

    def __init__(self, rounds: RoundService, deployment: DeploymentService) -> None:
        self._rounds = rounds
        self._deployment = deployment

    def refresh(self) -> Updates:
        """The page as it is now. What was said before is over, as something has changed."""
        return self._page("")

    def schedule(self) -> Updates:
        """The schedule in force, for the form. Read once a visit, so that nothing typed is overwritten."""
        schedule = self._rounds.schedule()
        values = (schedule.enabled, schedule.interval_minutes, schedule.min_new_pairs, schedule.gate)
        # Closed until now: what is typed before the values come would be overwritten.
        return tuple(gr.update(value=value, interactive=True) for value in values)

    def train(self, request: gr.Request) -> Updates:
        """Start a round on every vote given so far."""
        return self._after(
            lambda: f"Round {self._rounds.start(trigger=current_labeler(request)).number} has started."
        )

    def cancel(self, label: str) -> Updates:
        """Stop the round that is running."""
        return self._after(lambda: f"Round {self._rounds.cancel(_number(label)).number} is being cancelled.")

    def save(
        self, enabled: bool, interval: float, min_pairs: float, gate: str, request: gr.Request
    ) -> Updates:
        """Change the schedule."""

        def change() -> str:
            schedule = schedule_of(enabled, interval, min_pairs, gate)
            self._rounds.set_schedule(schedule, actor=current_labeler(request))
            return "Schedule saved."

        return self._after(change)

    async def roll_back(self, request: gr.Request) -> Updates:
        """Back to the version that was live before."""

        async def go_back() -> str:
            return f"{await self._deployment.rollback(actor=current_labeler(request))} is live again."

        return await self._after_await(go_back)

    async def act(self, event: gr.EventData, request: gr.Request) -> Updates:
        """A button in the versions table or on a round's card."""
        wanted = event._data if isinstance(event._data, dict) else {}
        action, name = str(wanted.get("action")), str(wanted.get("name"))

        async def decide() -> str:
            actor = current_labeler(request)
            if action == "promote":
                return f"{await self._deployment.promote(name, actor=actor)} is live now."
            if action == "approve":
                return f"{(await self._rounds.approve(_number(name), actor=actor)).version} is live now."
            if action == "reject":
                number = _number(name)
                await asyncio.to_thread(lambda: self._rounds.reject(number, actor=actor))
                return f"Round {number} was turned down."
            raise BadInput(f"action: expected promote, approve or reject, found {action[:40]!r}")

        return await self._after_await(decide)

    def _after(self, effect: Callable[[], str]) -> Updates:
        try:
            return self._page(effect())
        except Exception as error:
            return self._page(sentence_of(error))

    async def _after_await(self, effect: Callable[[], Awaitable[str]]) -> Updates:
        try:
            sentence = await effect()
        except Exception as error:
            sentence = sentence_of(error)
        return await asyncio.to_thread(self._page, sentence)

    def _page(self, sentence: str) -> Updates:
        try:
            screen = render_rounds(self._rounds.overview())
        except Exception as error:
            return (plain_md(sentence_of(error)), *(gr.skip() for _ in range(NUM_OUTPUTS - 1)))
        return to_updates(screen, sentence)


def to_updates(screen: RoundsScreen, sentence: str) -> Updates:
    """Values for the page's outputs."""
    return (
        plain_md(sentence),
        screen.versions,
        screen.history,
        screen.next_round,
        gr.update(interactive=screen.can_train),
        gr.update(
            visible=screen.active_round is not None,
            interactive=not screen.is_cancelling,
            value=_cancel_label(screen),
        ),
        gr.update(interactive=screen.can_roll_back),
    )


def live_panel() -> Html:
    """Empty slots for `rounds.js`: phase, progress, two curves."""
    return element(
        "section",
        element("p", id="ds-phase", cls="ds-phase"),
        element("progress", id="ds-phase-bar", max="1", value="0", aria_label="Progress of the round"),
        element("div", id="ds-curves", cls="ds-curves"),
        id="ds-training",
        aria_label="Training",
    )


def build(pages: Any, studio: Studio) -> None:
    """Lay the page out and wire it."""
    handlers = RoundsHandlers(studio.rounds, studio.deployment)
    with gr.Row(elem_classes="ds-columns"):
        with gr.Column(scale=3, min_width=300, elem_classes="ds-card"):
            with gr.Row(elem_classes="ds-section-head"):
                heading("Training")
                cancel = gr.Button("Cancel", visible=False, scale=0, min_width=160, elem_id="cancel")
                train = gr.Button("Train now", variant="primary", scale=0, min_width=130, elem_id="train-now")
            next_round = board(elem_id="next-round")
            board(live_panel())
            sentence = notice()
        with gr.Column(scale=2, min_width=280, elem_classes="ds-card"):
            heading("Schedule")
            schedule, save = _schedule_form()
            training_form.build(studio.rounds)
    with gr.Column(elem_classes="ds-card"):
        with gr.Row(elem_classes="ds-section-head"):
            heading("Versions")
            roll_back = gr.Button("Roll back", scale=0, min_width=120, elem_id="roll-back")
        versions = board(elem_id="versions", js_on_load=_FORWARD_CLICKS)
    with gr.Column(elem_classes="ds-card"):
        heading("History")
        history = board(elem_id="history", js_on_load=_FORWARD_CLICKS)
    refresh = gr.Button(visible="hidden", elem_id="rounds-refresh")

    outputs = [sentence, versions, history, next_round, train, cancel, roll_back]
    assert len(outputs) == NUM_OUTPUTS
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    pages.load(handlers.refresh, None, outputs, **quiet)
    pages.load(handlers.schedule, None, schedule, **quiet)
    refresh.click(handlers.refresh, None, outputs, **quiet)
    train.click(handlers.train, None, outputs, **quiet)
    cancel.click(handlers.cancel, cancel, outputs, **quiet)
    save.click(handlers.save, schedule, outputs, **quiet)
    roll_back.click(handlers.roll_back, None, outputs, **quiet)
    for table in (versions, history):
        table.click(handlers.act, None, outputs, **quiet)


def _schedule_form() -> tuple[list[Any], Any]:
    enabled = gr.Checkbox(
        label="Start rounds by themselves", container=False, interactive=False, elem_id="schedule-on"
    )
    with gr.Row():
        interval = gr.Number(
            label="At most every (minutes)",
            precision=0,
            minimum=1,
            min_width=120,
            interactive=False,
            elem_id="interval",
        )
        min_pairs = gr.Number(
            label="Once there are (new pairs)",
            precision=0,
            minimum=1,
            min_width=120,
            interactive=False,
            elem_id="min-pairs",
        )
    gate = gr.Radio(
        label="After the gate",
        choices=[("promote by itself", "auto"), ("ask me first", "manual")],
        interactive=False,
        elem_id="gate",
    )
    save = gr.Button("Save schedule", elem_id="save-schedule")
    return [enabled, interval, min_pairs, gate], save


def _cancel_label(screen: RoundsScreen) -> str:
    if screen.is_cancelling:
        return "Cancelling …"
    return f"Cancel round {screen.active_round}" if screen.active_round else "Cancel"


def _number(value: Any) -> int:
    """A round's number: digits alone, or the words of the cancel button that ends with it."""
    digits = str(value).rpartition(" ")[2]
    if not digits.isdecimal() or len(digits) > 9:
        raise BadInput(f"round: expected its number, found {str(value)[:40]!r}")
    return int(digits)
