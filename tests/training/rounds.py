"""Round folders with a tiny model in them, for tests of the worker."""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.domain.round import RoundJob, RoundReport, StepProgress, TrainSettings
from dpo_studio.files import read_json, read_jsonl, sha256_of_file, write_json, write_jsonl
from dpo_studio.modeling.weights import inspect_weights, weights_sha256
from dpo_studio.paths import RoundPaths

COMMAND = (sys.executable, "-m", "dpo_studio.training.worker")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(__file__).parents[2])}


def row(number: int, chosen: str, rejected: str, **changes: Any) -> dict[str, Any]:
    """One line of train.jsonl."""
    return {
        "pair_id": f"p{number}:vote",
        "prompt": [{"role": "user", "content": f"Question {number}, please?"}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        "chosen_ids": None,
        "rejected_ids": None,
        "chosen_version": "base",
        "rejected_version": "base",
        "vote_ids": [f"v{number}"],
        "labelers": ["anna"],
        **changes,
    }


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Pairs in which the short answer wins."""
    return [
        row(n, f"Yes {n}.", f"Well, thank you very much for number {n} indeed.")
        for n in range(first, first + count)
    ]


def make_round(
    folder: Path,
    model: Path,
    *,
    train: Sequence[Any] | None = None,
    heldout: Sequence[Any] = (),
    settings: TrainSettings | None = None,
    **changes: Any,
) -> RoundPaths:
    """Write job.json, train.jsonl and heldout.jsonl. `changes` replace fields of the job."""
    paths = RoundPaths(folder)
    train = rows(8) if train is None else train
    write_jsonl(paths.train, train)
    write_jsonl(paths.heldout, heldout)
    job: dict[str, Any] = {
        "round": 1,
        "model": str(model),
        "model_sha256": weights_sha256(model, inspect_weights(model)),
        "settings": to_json(settings or TrainSettings(epochs=2, learning_rate=1e-2, lora_rank=4)),
        "train_sha256": sha256_of_file(paths.train),
        "heldout_sha256": sha256_of_file(paths.heldout),
        "num_train": len(train),
        "num_heldout": len(heldout),
        "threads": 1,
        "device": "cpu",
        **changes,
    }
    write_json(paths.job, to_json(from_json(RoundJob, job)))
    return paths


@contextmanager
def worker(paths: RoundPaths) -> Iterator["subprocess.Popen[bytes]"]:
    """A real worker process in a session of its own; killed at the end if it still runs."""
    with paths.log.open("wb") as log:
        process = subprocess.Popen(
            [*COMMAND, str(paths.root)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=ENVIRONMENT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdin:
            process.stdin.close()


def read_report(paths: RoundPaths) -> RoundReport:
    return from_json(RoundReport, read_json(paths.report))


def read_progress(paths: RoundPaths) -> list[StepProgress]:
    if not paths.progress.exists():
        return []
    return [from_json(StepProgress, json.loads(json.dumps(line))) for line in read_jsonl(paths.progress)]
