"""What a round needs beside its data: the model, the processes it runs in, and whom it reports to."""

from dataclasses import dataclass
from pathlib import Path

from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.world import World
from dpo_studio.modeling.base_model import BaseModel
from dpo_studio.modeling.chat_format import ChatFormat
from dpo_studio.training.lifeline import Cancellation
from dpo_studio.training.progress import ProgressLog


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The same for every part of one round."""

    base: BaseModel
    chat: ChatFormat
    world: World
    is_main: bool
    """Whether this process writes files."""
    progress: ProgressLog
    cancellation: Cancellation
    budget: MemoryBudget
    free_memory: int | None
    """Bytes that training may still take; None where nobody tells."""
    checkpoint: Path
    """The round's checkpoint file, which need not exist."""
