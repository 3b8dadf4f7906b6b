"""How a round trained, told in sentences: what happened, and nothing of what did not."""

from dataclasses import replace
from typing import Any

import pytest

from dpo_studio.domain.round import TrainingFacts
from dpo_studio.services.how_trained import sentences

PLAIN = TrainingFacts("Trained in the packed layout.", (), 0, 0, 7, 0, 12.4)


def test_a_plain_round_is_four_sentences() -> None:
    assert sentences(PLAIN) == (
        "Trained in the packed layout.",
        "Every pair was used, and none was cut.",
        "Reference log-probabilities of 7 pairs were computed.",
        "Training and measuring took 12 s.",
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"notes": ("It ended early.",)}, "It ended early."),
        ({"num_truncated": 1}, "1 pair was too long and cut to fit."),
        ({"num_dropped": 2}, "2 pairs were left out: nothing could be learnt there."),
        ({"num_reference_computed": 1}, "Reference log-probabilities of 1 pair were computed."),
        (
            {"num_reference_known": 5},
            "Reference log-probabilities of 5 pairs were known from earlier rounds; those of 7 pairs were"
            " computed.",
        ),
        (
            {"num_reference_known": 5, "num_reference_computed": 0},
            "Reference log-probabilities of 5 pairs were known from earlier rounds; none had to be computed.",
        ),
        ({"train_seconds": 59.7}, "Training and measuring took 1 min 0 s."),
        ({"train_seconds": 0.2}, "Training and measuring took 0 s."),
    ],
)
def test_each_fact_is_a_sentence(change: dict[str, Any], sentence: str) -> None:
    assert sentence in sentences(replace(PLAIN, **change))


@pytest.mark.parametrize("change", [{"num_truncated": 1}, {"num_dropped": 1}])
def test_pairs_that_were_touched_are_not_said_to_be_whole(change: dict[str, Any]) -> None:
    told = sentences(replace(PLAIN, **change))
    assert not any("Every pair" in sentence for sentence in told)
    assert len(told) == len(sentences(PLAIN))


def test_of_a_round_that_went_on_only_the_time_since_then_is_known() -> None:
    """Seconds of the last worker were told as those of the whole training."""
    resumed = replace(PLAIN, num_reference_computed=0)
    assert sentences(resumed)[-1] == "Since it went on, training and measuring took 12 s."


def test_references_that_came_with_a_checkpoint_are_not_mentioned() -> None:
    resumed = replace(PLAIN, num_reference_computed=0)
    assert not any("Reference" in sentence for sentence in sentences(resumed))
