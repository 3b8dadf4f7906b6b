"""How the next rounds train: a form that most visitors never open, below the schedule.

The form is read when it is opened, so that it shows what is in force and overwrites nothing typed. What
was entered is checked by the service; the sentence of a refusal names the field.
"""

from typing import Any

import gradio as gr

from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.errors import BadInput
from dpo_studio.services.rounds import RoundService
from dpo_studio.services.views import TrainingChoice, TrainingView
from dpo_studio.ui.board import board, prose
from dpo_studio.ui.identity import current_labeler
from dpo_studio.ui.markup import Html, element
from dpo_studio.ui.safe_text import plain_md
from dpo_studio.ui.trouble import sentence_of

Updates = tuple[Any, ...]
FIELDS = tuple(TrainingChoice.__dataclass_fields__)
"""The form's fields, in this order."""
WORDS = {
    "loss": "loss",
    "beta": "beta",
    "label_smoothing": "label smoothing",
    "sft_weight": "SFT weight",
    "learning_rate": "learning rate",
    "epochs": "epochs",
    "lora_rank": "LoRA rank",
    "early_stop_patience": "early stop",
    "ld_alpha": "length desensitisation",
    "soft_labels": "split votes as probabilities",
}
SAVED = "Training settings saved. They count for rounds that start from now on."
RESET = "Training settings are the preset again."


class TrainingHandlers:
    """What the form's events do. Outputs: the form's sentence, the summary, the fields."""

    def __init__(self, rounds: RoundService) -> None:
        self._rounds = rounds

    def show(self) -> Updates:
        """What is in force, for a form that has just been opened."""
        try:
            return to_updates(self._rounds.training.view(), "")
        except Exception as error:
            return _only_sentence(error)

    def save(
        self,
        loss: str,
        beta: float,
        smoothing: float,
        sft_weight: float,
        rate: float,
        epochs: float,
        rank: float,
        patience: float,
        ld_alpha: float,
        soft_labels: bool,
        request: gr.Request,
    ) -> Updates:
        """Change it, whole or not at all."""
        entered = [loss, beta, smoothing, sft_weight, rate, epochs, rank, patience, ld_alpha, soft_labels]
        try:
            choice = choice_of_form(entered)
            view = self._rounds.training.change(choice, actor=current_labeler(request))
        except Exception as error:
            return _only_sentence(error)
        return to_updates(view, SAVED)

    def reset(self, request: gr.Request) -> Updates:
        """Back to the preset."""
        try:
            return to_updates(self._rounds.training.reset(actor=current_labeler(request)), RESET)
        except Exception as error:
            return _only_sentence(error)


def to_updates(view: TrainingView, sentence: str) -> Updates:
    """Values for the outputs; the fields open, as they were closed until they had values."""
    values = to_json(view.choice)
    return (
        plain_md(sentence),
        render_summary(view),
        *(gr.update(value=values[name], interactive=True) for name in FIELDS),
    )


def render_summary(view: TrainingView) -> Html:
    """What differs from the preset, in a sentence."""
    chosen, preset = to_json(view.choice), to_json(view.preset)
    changes = [
        f"{WORDS[n]} {_shown(chosen[n])} (preset {_shown(preset[n])})"
        for n in FIELDS
        if chosen[n] != preset[n]
    ]
    if not changes:
        return element("p", "The preset for this model’s size.", cls="ds-soft")
    return element("p", f"Changed from the preset: {', '.join(changes)}.", cls="ds-soft")


def choice_of_form(values: list[Any]) -> TrainingChoice:
    """What the visitor entered. Raises BadInput for what is no choice at all; the service checks ranges."""
    entered = dict(zip(FIELDS, values, strict=True))
    for name in ("epochs", "lora_rank", "early_stop_patience"):
        # A number field may send 4.0 for 4.
        value = entered[name]
        if isinstance(value, float) and value.is_integer():
            entered[name] = int(value)
    empty = [WORDS[name] for name in FIELDS if entered[name] is None]
    if empty:
        raise BadInput(f"{empty[0]}: expected a value, found none")
    return from_json(TrainingChoice, entered, where="training")


def build(rounds: RoundService) -> None:
    """Lay the form out and wire it. It speaks in a line of its own: on a phone the page's is out of sight."""
    handlers = TrainingHandlers(rounds)
    with gr.Accordion("Advanced: training settings", open=False, elem_id="training-settings") as accordion:
        summary = board(elem_id="training-summary")
        fields = _fields()
        with gr.Row():
            save = gr.Button("Save settings", min_width=120, elem_id="save-training")
            reset = gr.Button("Reset to preset", min_width=120, elem_id="reset-training")
        sentence = prose("training-notice", "ds-notice")
    outputs = [sentence, summary, *fields]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
    accordion.expand(handlers.show, None, outputs, **quiet)
    save.click(handlers.save, fields, outputs, **quiet)
    reset.click(handlers.reset, None, outputs, **quiet)


def _fields() -> list[Any]:
    loss = gr.Dropdown(
        label="Loss",
        choices=[
            ("sigmoid (DPO)", "sigmoid"),
            ("ipo", "ipo"),
            ("hinge", "hinge"),
            ("robust (DPO for noisy votes)", "robust"),
            ("plackett_luce (whole rankings)", "plackett_luce"),
        ],
        interactive=False,
        elem_id="training-loss",
    )
    with gr.Row():
        beta = _number("beta", "Beta", step=0.05)
        smoothing = _number("label_smoothing", "Label smoothing", step=0.05)
    with gr.Row():
        sft = _number("sft_weight", "SFT weight", step=0.1)
        rate = _number("learning_rate", "Learning rate", step=0.0001)
    with gr.Row():
        epochs = _number("epochs", "Epochs", precision=0)
        rank = _number("lora_rank", "LoRA rank", precision=0)
    patience = _number(
        "early_stop_patience", "Stop early after (epochs without improvement; 0 never)", precision=0
    )
    ld_alpha = _number("ld_alpha", "Length desensitisation (1 is none)", step=0.1)
    soft_labels = gr.Checkbox(
        label="Split votes count as probabilities",
        container=False,
        interactive=False,
        elem_id="training-soft-labels",
    )
    return [loss, beta, smoothing, sft, rate, epochs, rank, patience, ld_alpha, soft_labels]


def _number(name: str, label: str, *, step: float = 1, precision: int | None = None) -> Any:
    return gr.Number(
        label=label,
        step=step,
        precision=precision,
        min_width=120,
        interactive=False,
        elem_id=f"training-{name.replace('_', '-')}",
    )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _only_sentence(error: Exception) -> Updates:
    return (plain_md(sentence_of(error)), *(gr.skip() for _ in range(1 + len(FIELDS))))
