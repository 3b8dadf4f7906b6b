"""One attempt at a round, from its folder to a report, and every way it can end as a sentence.

Apart from `worker`, which is up before torch is loaded: that takes seconds, and a worker whose studio dies
meanwhile has to notice.
"""

import traceback

import torch

from dpo_studio.domain.round import RoundReport
from dpo_studio.dpo.failures import TrainingCancelled
from dpo_studio.dpo.memory import MemoryBudget, is_out_of_memory
from dpo_studio.dpo.memory_estimate import free_bytes
from dpo_studio.errors import StudioError
from dpo_studio.modeling.base_model import load_base
from dpo_studio.paths import RoundPaths
from dpo_studio.training.fabric import Fabric, cpu_threads
from dpo_studio.training.job import read_assignment
from dpo_studio.training.lifeline import Cancellation
from dpo_studio.training.progress import ProgressLog
from dpo_studio.training.round_training import RoundTraining
from dpo_studio.training.surroundings import Surroundings

EXIT_OK = 0
EXIT_FAILED = 3
EXIT_CANCELLED = 4


def attempt(paths: RoundPaths, progress: ProgressLog, cancellation: Cancellation) -> tuple[RoundReport, int]:
    """Train; whatever happens, a report and the process's exit code."""
    try:
        return train_round(paths, progress, cancellation), EXIT_OK
    except TrainingCancelled:
        return failed("The round was cancelled"), EXIT_CANCELLED
    except StudioError as error:
        traceback.print_exc()
        return failed(str(error)), EXIT_FAILED
    except OSError as error:
        traceback.print_exc()
        return failed(f"Training could not read or write a file ({error}); is the disk full?"), EXIT_FAILED
    # The last border before people: for them a sentence, for us the traceback in train.log.
    except Exception as error:
        traceback.print_exc()
        if is_out_of_memory(error):
            return failed("Memory ran out while training; use a smaller model or free memory"), EXIT_FAILED
        return failed(f"Training met an unexpected {type(error).__name__}; see train.log"), EXIT_FAILED


def train_round(paths: RoundPaths, progress: ProgressLog, cancellation: Cancellation) -> RoundReport:
    """Train one round from its folder. Raises a StudioError, or TrainingCancelled."""
    if cancellation.requested():
        # Torch alone takes seconds to load: much can have been asked for meanwhile.
        raise TrainingCancelled
    assignment = read_assignment(paths)
    job = assignment.job
    torch.set_num_threads(cpu_threads(job.threads))
    fabric = Fabric(job.device)
    try:
        base = load_base(
            job.model,
            device=fabric.device,
            dtype=job.dtype,
            chat_template=job.chat_template,
            on_progress=lambda fraction, _: progress.report("loading", round(100 * fraction), 100),
        )
        free = free_bytes(base.device)
        if free is not None and base.device.type == "cpu":
            # Every process of a machine sees the same memory; where there are several machines, it is safe.
            free //= fabric.world.size
        around = Surroundings(
            base=base,
            chat=base.chat_format(),
            world=fabric.world,
            is_main=fabric.is_main,
            progress=progress,
            cancellation=cancellation,
            budget=MemoryBudget.for_device(base.device),
            free_memory=free,
            checkpoint=paths.checkpoint,
        )
        report = RoundTraining(assignment, around).run(paths.adapter)
    finally:
        fabric.close()
    progress.report("done", report.num_steps, report.num_steps)
    return report


def failed(reason: str) -> RoundReport:
    """The report of a round that gave no adapter."""
    return RoundReport(
        ok=False,
        reason=reason,
        num_steps=0,
        num_train=0,
        num_heldout=0,
        num_truncated=0,
        num_dropped=0,
        train_seconds=0.0,
        metrics={},
        heldout_margins=(),
        live_margins=(),
        candidate_probe=None,
        base_probe=None,
        adapter_sha256={},
    )
