"""One round, as the studio trains it: snapshot, job, worker, gate."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from dpo_studio import starter
from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.domain.preference import PreferencePair
from dpo_studio.domain.round import RoundJob, RoundReport, TrainSettings, Verdict
from dpo_studio.files import read_json, write_json
from dpo_studio.modeling.base_model import BaseModel
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.gate import judge
from dpo_studio.rounds.snapshot import write_snapshot
from dpo_studio.training.attempt import train_round
from dpo_studio.training.drift import DriftGuard
from dpo_studio.training.lifeline import Cancellation
from dpo_studio.training.progress import ProgressLog

HELDOUT_SHARE = 0.15
"""The studio's default."""


@dataclass(frozen=True, slots=True)
class Training:
    """How rounds are trained here."""

    settings: TrainSettings
    drift_budget: float | None = None
    """Nats a token at which the drift guard stops; None for the product's. Only in this process."""
    is_in_process: bool = False
    """Train without a worker process: 5 CPU-seconds less a round, and not what the product does."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a round gave. Seconds include the start of the worker."""

    report: RoundReport
    verdict: Verdict
    adapter: Path
    seconds: float
    cpu_seconds: float


def run_round(
    base: BaseModel,
    pairs: Sequence[PreferencePair],
    training: Training,
    folder: Path,
    *,
    number: int = 1,
    live_adapter: Path | None = None,
) -> Outcome:
    """Train `pairs` in `folder`, which belongs to all rounds of one studio. The report is of a good round."""
    paths = RoundPaths(folder / f"{number:04d}")
    snapshot = write_snapshot(pairs, paths, HELDOUT_SHARE)
    live = None if live_adapter is None else str(live_adapter)
    job = RoundJob(
        round=number,
        model=base.source,
        model_sha256=base.model_sha256,
        settings=training.settings,
        train_sha256=snapshot.train_sha256,
        heldout_sha256=snapshot.heldout_sha256,
        num_train=snapshot.num_train,
        num_heldout=snapshot.num_heldout,
        start_adapter=live if training.settings.start_from == "live" else None,
        live_adapter=live,
        probe_prompts=starter.smoke_prompts(),
        reference_cache=str(folder / "reference"),
    )
    write_json(paths.job, to_json(job))
    start, start_cpu = time.monotonic(), _cpu_seconds()
    report = _train_here(paths, training) if training.is_in_process else _train_in_worker(paths)
    seconds, cpu_seconds = time.monotonic() - start, _cpu_seconds() - start_cpu
    return Outcome(report, judge(report), paths.adapter, seconds, cpu_seconds)


def _train_in_worker(paths: RoundPaths) -> RoundReport:
    command = [sys.executable, "-m", "dpo_studio.training.worker", str(paths.root)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        process.wait()
    report = from_json(RoundReport, read_json(paths.report))
    assert report.ok, report.reason
    return report


def _train_here(paths: RoundPaths, training: Training) -> RoundReport:
    with _drift_budget(training.drift_budget):
        return train_round(paths, ProgressLog(paths.progress), Cancellation(paths.cancel))


@contextmanager
def _drift_budget(budget: float | None) -> Iterator[None]:
    """The budget is a constant of the product, not a setting: here it can be tried out all the same."""
    if budget is None:
        yield
        return
    with patch.dict(vars(DriftGuard)["__init__"].__kwdefaults__, budget=budget):
        yield


def _cpu_seconds() -> float:
    """Of this process and the children that ended."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
