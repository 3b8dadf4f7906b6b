"""A worker that learns nothing: plays the part told by the file `script` in the storage's parent folder.

Run as `python -m tests.services.scripted_worker STORAGE_PARENT ROUND_DIR`, like the real one; it reads the
job and writes progress, a valid adapter and a report.
Endings: good, slow, bad (fails the gate), refuse, die, hang; `die N` dies N times in a round, and each next
worker goes on from step 2. `starts` in the round's folder has a line for every start.
"""

import os
import signal
import sys
import time
from pathlib import Path

from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.domain.round import ProbeSummary, RoundJob, RoundReport, StepProgress
from dpo_studio.files import append_jsonl, read_json, write_json
from dpo_studio.paths import RoundPaths
from tests.services.adapters import write_adapter

HEALTHY = ProbeSummary(8, 1.0, 0.0, 0.0, 20.0, 0.02)
MUTE = ProbeSummary(8, 0.0, 1.0, 0.0, 200.0, 3.0)


def main(script: Path, folder: Path) -> int:
    paths = RoundPaths(folder)
    job = from_json(RoundJob, read_json(paths.job))
    ending, _, deaths = script.read_text().strip().partition(" ")
    with (folder / "starts").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    num_starts = len((folder / "starts").read_text().splitlines())
    first = 1 if num_starts == 1 else 3
    append_jsonl(paths.progress, to_json(StepProgress("loading", 0, 0, time.time(), {})))
    append_jsonl(paths.progress, to_json(StepProgress("training", first - 1, 3, time.time(), {})))
    for step in range(first, 4):
        metrics = {"loss": 0.7 - step / 10}
        append_jsonl(paths.progress, to_json(StepProgress("training", step, 3, time.time(), metrics)))
    if ending == "die" and num_starts <= int(deaths or sys.maxsize):
        os.kill(os.getpid(), signal.SIGKILL)
    if ending == "slow":
        time.sleep(1.0)
    while ending == "hang" and not paths.cancel.exists():
        time.sleep(0.02)
    if ending == "hang":
        return 4
    write_adapter(paths.adapter)
    is_refused = ending == "refuse"
    report = RoundReport(
        ok=not is_refused,
        reason="The loss became NaN at step 3" if is_refused else "",
        num_steps=3,
        num_train=job.num_train,
        num_heldout=job.num_heldout,
        num_truncated=2,
        num_dropped=1,
        train_seconds=1.5,
        metrics={"loss": 0.4, "heldout/rewards/accuracies": 1.0},
        heldout_margins=(1.0,) * job.num_heldout,
        live_margins=(),
        candidate_probe=MUTE if ending == "bad" else HEALTHY,
        base_probe=HEALTHY,
        adapter_sha256={},
        layout="Trained in the packed layout.",
        notes=("Training ended early.",),
        num_reference_computed=3,
        num_reference_known=4,
    )
    write_json(paths.report, to_json(report))
    return 3 if is_refused else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
