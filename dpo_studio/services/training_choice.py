"""TrainingChoices: how the next rounds train, as the preset for the model's size or as a person chose.

Only what differs from the preset is stored: the rest follows the preset when another model is served.
Nothing is stored that a round would refuse. Before the model has been loaded once its size is not known,
and neither is its preset: EngineUnavailable then.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from dpo_studio.domain.chat import ChatEngine
from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.domain.round import LOSSES_WITH_SMOOTHING, TrainSettings, preset_for
from dpo_studio.errors import BadInput, EngineUnavailable
from dpo_studio.services.views import TrainingChoice, TrainingView
from dpo_studio.store import studio_settings
from dpo_studio.store.database import Database

KEY = "training"
MAX_SFT_WEIGHT = 100.0


class TrainingChoices:
    """Reads and changes the choice. Safe from any thread."""

    def __init__(self, database: Database, engine: ChatEngine, *, now: Callable[[], datetime]) -> None:
        self._database = database
        self._engine = engine
        self._now = now

    def view(self) -> TrainingView:
        """The choice in force, and the preset beside it. Raises BadInput for one that older or newer code
        stored and this code does not know; a reset mends that.
        """
        preset = choice_of(self._preset())
        with self._database.read() as session:
            stored: dict[str, Any] = studio_settings.get_setting(KEY, session=session) or {}
        return TrainingView(from_json(TrainingChoice, to_json(preset) | stored, where=KEY), preset)

    def settings(self) -> TrainSettings:
        """What a round that starts now trains with."""
        return applied(self.view().choice, self._preset())

    def change(self, choice: TrainingChoice, *, actor: str) -> TrainingView:
        """Choose for the rounds to come. Raises BadInput, naming the value, for what cannot be trained."""
        preset = self._preset()
        applied(choice, preset)
        defaults = to_json(choice_of(preset))
        changed = {name: value for name, value in to_json(choice).items() if value != defaults[name]}
        with self._database.write() as session:
            studio_settings.change_setting(KEY, changed, actor=actor, now=self._now(), session=session)
        return self.view()

    def choose(self, changes: Mapping[str, Any], *, actor: str) -> TrainingView:
        """Like `change`, to the preset with these fields of it changed."""
        return self.change(replace(choice_of(self._preset()), **changes), actor=actor)

    def reset(self, *, actor: str) -> TrainingView:
        """Back to the preset."""
        return self.choose({}, actor=actor)

    def _preset(self) -> TrainSettings:
        size = self._engine.status.num_parameters
        if not size:
            # Another size has another preset, and what differs from the wrong one would be stored.
            raise EngineUnavailable("The model is still loading; how it trains is known when it is ready")
        return preset_for(size)


def choice_of(settings: TrainSettings) -> TrainingChoice:
    """The part of `settings` that people choose."""
    return TrainingChoice(**{name: getattr(settings, name) for name in TrainingChoice.__dataclass_fields__})


def applied(choice: TrainingChoice, preset: TrainSettings) -> TrainSettings:
    """`preset` with the choice in it. Raises BadInput for values out of range or at odds with each other.

    LoRA's alpha keeps its ratio to the rank, so that another rank is not another learning rate as well.
    """
    if not 0 <= choice.sft_weight <= MAX_SFT_WEIGHT:
        raise BadInput(f"sft_weight: expected 0 to {MAX_SFT_WEIGHT:g}, found {choice.sft_weight}")
    if choice.label_smoothing and choice.loss not in LOSSES_WITH_SMOOTHING:
        raise BadInput(
            f"label_smoothing: expected 0 with the {choice.loss} loss, which has no smoothed form, found "
            f"{choice.label_smoothing}; choose another loss or set it to 0"
        )
    alpha = max(1, choice.lora_rank * preset.lora_alpha // preset.lora_rank)
    return replace(preset, **to_json(choice), lora_alpha=alpha)
