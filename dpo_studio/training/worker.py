"""`python -m dpo_studio.training.worker ROUND_DIR`: train one round and report.

Reads the folder's job.json, train.jsonl and heldout.jsonl; writes progress.jsonl, a checkpoint, adapter/ and,
last of all, report.json, with which the checkpoint goes. A worker that was killed leaves its checkpoint, and
the next one on the same folder goes on from there; the studio starts it, up to three times a round. Touches
nothing else: no database, no network beyond what loading the model needs. Works unchanged under
`accelerate launch`, where only the main process writes.
"""

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dpo_studio.domain.codec import to_json
from dpo_studio.files import find_temporaries, write_json
from dpo_studio.paths import RoundPaths
from dpo_studio.training.lifeline import Cancellation, die_with_stdin
from dpo_studio.training.progress import ProgressLog


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
    # Torch takes seconds to load, and a studio may die meanwhile: only now, with the lifeline in place.
    from dpo_studio.training.attempt import EXIT_CANCELLED, attempt

    report, code = attempt(paths, progress, cancellation)
    progress.stop()
    if is_main:
        write_json(paths.report, to_json(report))
        # A signal may mean that the machine goes down, and the round shall go on when it is back.
        if code != EXIT_CANCELLED or paths.cancel.exists():
            paths.checkpoint.unlink(missing_ok=True)
    return code


def _clear(paths: RoundPaths) -> None:
    """Remove what an earlier worker on the same folder left, so that nothing old is taken for ours."""
    paths.report.unlink(missing_ok=True)
    for leftover in (paths.adapter, *find_temporaries(paths.root)):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
