"""How rounds train: the preset until a person chooses, what was chosen after, never what a round refuses."""

from dataclasses import replace
from typing import Any

import pytest

from dpo_studio.domain.round import preset_for
from dpo_studio.errors import BadInput, EngineUnavailable
from dpo_studio.services.training_choice import TrainingChoices, applied, choice_of
from dpo_studio.services.views import TrainingChoice
from dpo_studio.store import audit, studio_settings
from tests.services.conftest import Bench, Rounds

SMALL = preset_for(3_000_000)
CHOICE = TrainingChoice("robust", 0.3, 0.1, 0.5, 1e-3, 2, 8, 1, 0.5, True)


@pytest.fixture
def training(bench: Bench) -> TrainingChoices:
    return TrainingChoices(bench.database, bench.engine, now=bench.clock)


def test_the_preset_counts_until_a_person_chooses(training: TrainingChoices) -> None:
    view = training.view()
    assert view.choice == view.preset == choice_of(SMALL)
    assert training.settings() == SMALL


def test_a_choice_is_kept_and_everything_else_stays_the_presets(training: TrainingChoices) -> None:
    assert training.change(CHOICE, actor="ann").choice == CHOICE
    settings = training.settings()
    assert choice_of(settings) == CHOICE
    assert replace(settings, **{name: getattr(SMALL, name) for name in CHOICE.__dataclass_fields__}) == (
        replace(SMALL, lora_alpha=settings.lora_alpha)
    )


def test_reset_is_the_preset_again(training: TrainingChoices) -> None:
    training.change(CHOICE, actor="ann")
    assert training.reset(actor="ann").choice == choice_of(SMALL)
    assert training.settings() == SMALL


def test_what_nobody_changed_follows_the_preset_of_another_model(
    training: TrainingChoices, bench: Bench
) -> None:
    training.change(replace(choice_of(SMALL), beta=0.4), actor="ann")
    bench.engine.num_parameters = 10**9
    settings = training.settings()
    assert (settings.beta, settings.learning_rate) == (0.4, preset_for(10**9).learning_rate)
    assert settings.learning_rate != SMALL.learning_rate


def test_a_choice_stored_when_there_was_less_to_choose_still_counts(
    training: TrainingChoices, bench: Bench
) -> None:
    with bench.database.write() as session:
        studio_settings.put_setting("training", {"beta": 0.4}, session=session)
    settings = training.settings()
    assert (settings.beta, settings.early_stop_patience, settings.soft_labels) == (0.4, 0, False)


def test_a_choice_of_other_code_is_a_sentence_and_a_reset_mends_it(
    training: TrainingChoices, bench: Bench
) -> None:
    with bench.database.write() as session:
        studio_settings.put_setting("training", {"momentum": 0.9}, session=session)
    with pytest.raises(BadInput, match="training: unknown key 'momentum'"):
        training.view()
    assert training.choose({}, actor="ann").choice == choice_of(SMALL)


def test_another_rank_keeps_the_scale_of_the_adapter() -> None:
    settings = applied(replace(choice_of(SMALL), lora_rank=4), SMALL)
    assert settings.lora_alpha / 4 == SMALL.lora_alpha / SMALL.lora_rank


def test_a_change_is_in_the_audit_log(training: TrainingChoices, bench: Bench) -> None:
    training.change(replace(choice_of(SMALL), epochs=7), actor="ann")
    with bench.database.read() as session:
        (event,) = audit.list_events(limit=5, session=session)
    assert (event.actor, event.subject, event.details) == ("ann", "training", {"value": {"epochs": 7}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"beta": 0.0}, "beta: expected above 0 and at most 100.0, found 0.0"),
        ({"beta": float("nan")}, "beta: expected above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing: expected 0 to below 0.5, found 0.5"),
        ({"label_smoothing": -0.1}, "label_smoothing: expected 0 to below 0.5"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing: expected 0 with the ipo loss"),
        ({"loss": "plackett_luce", "label_smoothing": 0.1}, "expected 0 with the plackett_luce loss"),
        ({"sft_weight": -1.0}, "sft_weight: expected 0 to 100, found -1"),
        ({"sft_weight": float("nan")}, "sft_weight: expected 0 to 100"),
        ({"learning_rate": 0.0}, "learning_rate: expected above 0"),
        ({"epochs": 0}, "epochs: expected above 0 and at most 100"),
        ({"lora_rank": 513}, "lora_rank: expected above 0 and at most 512"),
        ({"early_stop_patience": -1}, "early_stop_patience: expected 0 to 100, found -1"),
        ({"ld_alpha": 1.5}, "ld_alpha: expected 0 to 1, found 1.5"),
        ({"ld_alpha": float("nan")}, "ld_alpha: expected 0 to 1, found nan"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name_and_changes_nothing(
    training: TrainingChoices, change: dict[str, Any], words: str
) -> None:
    training.change(CHOICE, actor="ann")
    with pytest.raises(BadInput, match=words):
        training.change(replace(choice_of(SMALL), **change), actor="ann")
    assert training.view().choice == CHOICE


def test_before_the_model_is_known_there_is_no_preset(training: TrainingChoices, bench: Bench) -> None:
    bench.engine.num_parameters = 0
    for ask in (training.view, training.settings, lambda: training.change(CHOICE, actor="ann")):
        with pytest.raises(EngineUnavailable, match="still loading"):
            ask()


async def test_the_next_round_uses_the_choice_and_its_record_says_so(rounds: Rounds) -> None:
    await rounds.label(2)
    rounds.service.training.change(CHOICE, actor="ann")
    assert choice_of((await rounds.train()).settings) == CHOICE
    rounds.service.training.reset(actor="ann")
    assert (await rounds.train()).settings == preset_for(3_000_000)
