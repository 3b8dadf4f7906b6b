"""Dataclasses survive JSON; what does not fit is refused by place."""

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.domain.round import (
    ProbeSummary,
    RoundJob,
    RoundReport,
    RoundStatus,
    StepProgress,
    TrainSettings,
    Verdict,
)
from dpo_studio.errors import BadInput

SETTINGS = TrainSettings(loss="ipo", beta=0.3, start_from="live")
PROBE = ProbeSummary(4, 1.0, 0.0, 0.25, 12.5, 0.125)
JOB = RoundJob(7, "starter", "sha256:m", SETTINGS, "sha256:t", "sha256:h", 9, 1, probe_prompts=("Hi", "Ho"))
REPORT = RoundReport(
    True, "", 3, 9, 1, 0, 0, 1.5, {"loss": 0.5}, (0.1, -0.2), (), PROBE, None, {"a": "sha256:x"}
)


@pytest.mark.parametrize(
    "value", [SETTINGS, JOB, REPORT, StepProgress("done", 1, 2, 3.5, {}), Verdict(False, ("too long",))]
)
def test_values_survive_json(value: Any) -> None:
    text = json.dumps(to_json(value))
    assert from_json(type(value), json.loads(text)) == value


@given(beta=st.floats(0.001, 100), epochs=st.integers(1, 100), loss=st.sampled_from(["sigmoid", "ipo"]))
def test_any_settings_survive_json(beta: float, epochs: int, loss: Any) -> None:
    settings = TrainSettings(beta=beta, epochs=epochs, loss=loss)
    assert from_json(TrainSettings, json.loads(json.dumps(to_json(settings)))) == settings


def test_an_enum_is_its_value() -> None:
    assert to_json(RoundStatus.WAITING) == "waiting"
    assert from_json(RoundStatus, "waiting") is RoundStatus.WAITING


def test_a_whole_number_is_a_float_where_one_is_asked() -> None:
    settings = from_json(TrainSettings, to_json(SETTINGS) | {"beta": 1})
    assert settings.beta == 1.0 and isinstance(settings.beta, float)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"colour": "red"}, "TrainSettings: unknown key 'colour'"),
        ({"beta": "0.1"}, r"TrainSettings.beta: expected float, found str"),
        ({"epochs": True}, r"TrainSettings.epochs: expected int, found bool"),
        ({"epochs": 1.5}, r"TrainSettings.epochs: expected int, found float"),
        ({"loss": "kto"}, r"TrainSettings.loss: expected one of .*'ipo'.*, found 'kto'"),
        ({"beta": -1.0}, "beta: expected above 0"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"warmup_ratio": 1.0}, "warmup_ratio"),
    ],
)
def test_what_does_not_fit_is_refused_by_place(change: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        from_json(TrainSettings, to_json(SETTINGS) | change)


def test_a_missing_key_is_named() -> None:
    value = to_json(JOB)
    del value["model"]
    with pytest.raises(BadInput, match="RoundJob: missing key 'model'"):
        from_json(RoundJob, value)


def test_the_place_of_a_deep_fault_is_spelled_out() -> None:
    value = to_json(JOB)
    value["settings"]["beta"] = None
    value["probe_prompts"] = ["ok", 3]
    with pytest.raises(BadInput, match=r"job.json.settings.beta"):
        from_json(RoundJob, value, where="job.json")
    value["settings"]["beta"] = 0.1
    with pytest.raises(BadInput, match=r"job.json.probe_prompts\[1\]: expected str, found int"):
        from_json(RoundJob, value, where="job.json")


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_something_else_than_an_object_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match="Verdict: expected dict"):
        from_json(Verdict, value)


def test_optional_values_may_be_null_and_defaults_may_be_absent() -> None:
    @dataclass(frozen=True)
    class Box:
        size: int | None
        label: str = "none"

    assert from_json(Box, {"size": None}) == Box(None)
    assert from_json(Box, {"size": 3, "label": "big"}) == Box(3, "big")


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(BadInput, match=r"expected one of .*'queued'.*, found 'paused'"):
        from_json(RoundStatus, "paused")


def test_active_statuses_are_those_with_a_process() -> None:
    assert [status.value for status in RoundStatus if status.is_active] == ["queued", "running", "gating"]
