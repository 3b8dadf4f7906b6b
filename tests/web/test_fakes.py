"""The fakes cannot drift from the services: what routes call on a fake, they may call on the real one."""

import inspect

import pytest

from dpo_studio.services.data import DataService
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.generation import GenerationService
from dpo_studio.services.labeling import LabelingService
from dpo_studio.services.rounds import RoundService
from dpo_studio.services.training_choice import TrainingChoices
from tests.fakes import FakeTraining
from tests.web.fakes import FakeData, FakeDeployment, FakeGeneration, FakeLabeling, FakeRounds

PAIRS = [
    (FakeLabeling, LabelingService),
    (FakeDeployment, DeploymentService),
    (FakeGeneration, GenerationService),
    (FakeRounds, RoundService),
    (FakeData, DataService),
    (FakeTraining, TrainingChoices),
]


@pytest.mark.parametrize(("fake", "real"), PAIRS)
def test_every_method_of_a_fake_takes_what_the_service_takes(fake: type, real: type) -> None:
    methods = [name for name, _ in inspect.getmembers(fake, inspect.isfunction) if not name.startswith("_")]
    methods = [name for name in methods if name != "reset"]
    assert methods
    for name in methods:
        ours, theirs = getattr(fake, name), getattr(real, name)
        for check in (inspect.iscoroutinefunction, inspect.isasyncgenfunction):
            assert check(ours) == check(theirs), name
        accepted = inspect.signature(theirs).parameters
        required = {key for key, value in accepted.items() if value.default is inspect.Parameter.empty}
        offered = inspect.signature(ours).parameters
        assert required <= set(offered) <= set(accepted), name
        assert all(offered[key].kind == accepted[key].kind for key in offered), name
