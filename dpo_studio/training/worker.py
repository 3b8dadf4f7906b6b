"""`python -m dpo_studio.training.worker ROUND_DIR`: train one round and report.

Reads the folder's job.json, train.jsonl and heldout.jsonl; writes progress.jsonl, adapter/ and, last of
all, report.json. Touches nothing else: no database, no network beyond what loading the model needs. Works
unchanged under `accelerate launch`, where only the main process writes.
"""

import argparse
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from dpo_studio.domain.codec import to_json
from dpo_studio.domain.round import RoundReport
from dpo_studio.dpo.failures import TrainingCancelled
from dpo_studio.dpo.memory import MemoryBudget, is_out_of_memory
from dpo_studio.errors import StudioError
from dpo_studio.files import find_temporaries, write_json
from dpo_studio.modeling.base_model import load_base
from dpo_studio.paths import RoundPaths
from dpo_studio.training.fabric import Fabric, cpu_threads
from dpo_studio.training.job import read_assignment
from dpo_studio.training.lifeline import Cancellation, die_with_stdin
from dpo_studio.training.progress import ProgressLog
from dpo_studio.training.round_training import RoundTraining, Surroundings

EXIT_OK = 0
EXIT_FAILED = 3
EXIT_CANCELLED = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the round in the folder named on the command line. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="dpo_studio.training.worker", description=__doc__)
    parser.add_argument("round_dir", type=Path, help="folder with job.json, train.jsonl and heldout.jsonl")
    paths = RoundPaths(parser.parse_args(arguments).round_dir.resolve())
    # Set by `accelerate launch`; known before the job, which decides the device, can be read.
    is_main = os.environ.get("RANK", "0") == "0"
    # To standard error, which the launcher writes to train.log; other libraries keep to their warnings.
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dpo_studio").setLevel(logging.INFO)
    die_with_stdin()
    cancellation = Cancellation(paths.cancel)
    cancellation.listen()
    progress = ProgressLog(paths.progress if is_main else Path(os.devnull))
    if is_main:
        _clear(paths)
    progress.start()
    report, code = _outcome(paths, progress, cancellation)
    progress.stop()
    if is_main:
        write_json(paths.report, to_json(report))
    return code


def train_round(paths: RoundPaths, progress: ProgressLog, cancellation: Cancellation) -> RoundReport:
    """Train one round from its folder. Raises a StudioError, or TrainingCancelled."""
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
        around = Surroundings(
            base=base,
            chat=base.chat_format(),
            world=fabric.world,
            is_main=fabric.is_main,
            progress=progress,
            cancellation=cancellation,
            budget=MemoryBudget.for_device(base.device),
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


def _clear(paths: RoundPaths) -> None:
    """Remove what an earlier worker on the same folder left, so that nothing old is taken for ours."""
    paths.report.unlink(missing_ok=True)
    for leftover in (paths.adapter, *find_temporaries(paths.root)):
        shutil.rmtree(leftover, ignore_errors=True)


def _outcome(paths: RoundPaths, progress: ProgressLog, cancellation: Cancellation) -> tuple[RoundReport, int]:
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


if __name__ == "__main__":
    sys.exit(main())
