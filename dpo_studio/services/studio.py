"""Studio: the services as one value that pages, routes and commands receive."""

from dataclasses import dataclass

from dpo_studio.domain.chat import ChatEngine
from dpo_studio.services.data import DataService
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.generation import GenerationService
from dpo_studio.services.labeling import LabelingService
from dpo_studio.services.rounds import RoundService
from dpo_studio.settings import Settings


@dataclass(frozen=True, slots=True)
class Studio:
    """Built by `dpo_studio.composition`, each part replaceable by a fake in tests."""

    settings: Settings
    engine: ChatEngine
    labeling: LabelingService
    generation: GenerationService
    deployment: DeploymentService
    rounds: RoundService
    data: DataService
