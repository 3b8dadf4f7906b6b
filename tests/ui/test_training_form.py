"""The form for training settings: shows what is in force, saves whole or not at all, goes back."""

from dataclasses import replace
from html import unescape
from typing import Any

import pytest

from dpo_studio.domain.codec import to_json
from dpo_studio.errors import BadInput, EngineUnavailable
from dpo_studio.ui.training_form import FIELDS, TrainingHandlers, choice_of_form, render_summary
from tests.ui.fakes import World
from tests.ui.test_markup import Seen

NUM_OUTPUTS = 2 + len(FIELDS)
ENTERED: list[Any] = ["ipo", 0.5, 0.0, 1, 0.001, 3.0, 8, 2.0, 1, True]


def saved(handlers: TrainingHandlers, entered: list[Any], request: Any) -> tuple[Any, ...]:
    """As Gradio calls the handler: a value per field, then the request."""
    save: Any = handlers.save
    return tuple(save(*entered, request))


@pytest.fixture
def handlers(studio: Any) -> TrainingHandlers:
    return TrainingHandlers(studio.rounds)


def test_an_opened_form_shows_what_is_in_force_and_can_be_typed_into(
    handlers: TrainingHandlers, world: World
) -> None:
    sentence, summary, *fields = handlers.show()
    assert sentence == "", "what was said before is over"
    assert "preset for this model" in Seen(summary).text
    assert [field["value"] for field in fields] == list(to_json(world.training.preset).values())
    assert all(field["interactive"] for field in fields)


def test_saving_changes_the_choice_under_the_callers_name_and_names_the_differences(
    handlers: TrainingHandlers, world: World, request_of_ann: Any
) -> None:
    sentence, summary, *fields = saved(handlers, ENTERED, request_of_ann)
    assert to_json(world.training.choice) == dict(zip(FIELDS, ENTERED, strict=True))
    assert world.training.actors == ["ann"]
    assert "saved" in sentence
    assert "loss ipo (preset sigmoid), beta 0.5 (preset 0.1)" in Seen(summary).text
    assert "label smoothing" not in Seen(summary).text
    assert len(fields) == len(FIELDS)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (1, None, "beta: expected a value, found none"),
        (1, -1, "beta: expected above 0"),
        (1, "<b>", "expected float"),
        (0, "best", "expected one of"),
        (2, 0.2, "label_smoothing: expected 0 with the ipo loss"),
        (5, 2.5, "epochs: expected int"),
        (6, True, "lora_rank: expected int"),
        (7, -1, "early_stop_patience: expected 0 to 100, found -1"),
        (7, None, "early stop: expected a value, found none"),
        (8, 1.5, "ld_alpha: expected 0 to 1, found 1.5"),
        (9, 1, "soft_labels: expected bool"),
    ],
)
def test_a_refused_value_is_a_sentence_and_leaves_form_and_choice_alone(
    handlers: TrainingHandlers, world: World, request_of_ann: Any, place: int, value: Any, words: str
) -> None:
    entered = [*ENTERED[:place], value, *ENTERED[place + 1 :]]
    sentence, *others = saved(handlers, entered, request_of_ann)
    assert words in unescape(sentence)
    assert len(others) == NUM_OUTPUTS - 1
    assert all(set(other) == {"__type__"} for other in others)
    assert world.training.choice == world.training.preset


def test_reset_brings_the_preset_back_into_the_form(
    handlers: TrainingHandlers, world: World, request_of_ann: Any
) -> None:
    saved(handlers, ENTERED, request_of_ann)
    sentence, summary, *fields = handlers.reset(request_of_ann)
    assert world.training.choice == world.training.preset
    assert "preset" in sentence and "preset for this model" in Seen(summary).text
    assert fields[1]["value"] == world.training.preset.beta


def test_before_the_model_is_known_the_form_stays_closed(
    handlers: TrainingHandlers, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def still_loading() -> Any:
        raise EngineUnavailable("The model is still loading")

    monkeypatch.setattr(world.training, "view", still_loading)
    sentence, *others = handlers.show()
    assert "still loading" in sentence
    assert all(set(other) == {"__type__"} for other in others)


def test_whole_numbers_may_come_as_floats() -> None:
    choice = choice_of_form(ENTERED)
    assert (choice.epochs, choice.early_stop_patience) == (3, 2)
    with pytest.raises(BadInput):
        choice_of_form([*ENTERED[:5], float("inf"), *ENTERED[6:]])


def test_the_summary_is_of_what_differs(world: World) -> None:
    view = world.training.view()
    changed = replace(view, choice=replace(view.choice, learning_rate=1e-5))
    assert Seen(render_summary(changed)).text == (
        "Changed from the preset: learning rate 1e-05 (preset 0.002)."
    )
    switched = replace(view, choice=replace(view.choice, soft_labels=True))
    assert Seen(render_summary(switched)).text == (
        "Changed from the preset: split votes as probabilities on (preset off)."
    )
