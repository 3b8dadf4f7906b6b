"""The worker as a real process: killed in every phase, asked to stop, orphaned, and in two copies."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from dpo_studio.domain.round import StepProgress, TrainSettings
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds import launcher
from dpo_studio.rounds.launcher import LaunchSettings, WorkerOutcome, WorkerProcess
from dpo_studio.training.attempt import EXIT_CANCELLED
from tests.training.rounds import ENVIRONMENT, make_round, read_progress, read_report, rows, worker

pytestmark = pytest.mark.integration
SLOW = TrainSettings(epochs=100, batch_size=1, learning_rate=1e-9, lora_rank=4)
SHORT = TrainSettings(epochs=3, batch_size=1, learning_rate=1e-3, lora_rank=4)
QUICK = TrainSettings(epochs=1, learning_rate=1e-2, lora_rank=4)
PATIENT = LaunchSettings(hang_s=60.0, poll_s=0.02)


def test_launcher_and_worker_agree_on_the_exit_code_of_a_cancel() -> None:
    assert launcher.EXIT_CANCELLED == EXIT_CANCELLED


def test_the_lifeline_hangs_before_torch_is_loaded() -> None:
    """On a busy machine torch loads for 16 s, and a worker outlived its killed studio that long."""
    program = "import sys; import dpo_studio.training.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


async def disturb(
    paths: RoundPaths, phase: str, how: Callable[[WorkerProcess], None]
) -> tuple[WorkerOutcome, int]:
    """Launch a round and do something to its worker when it is in `phase` (in training: after a step).

    Returns how it ended and the number of steps it had taken before.
    """
    process = await WorkerProcess.start(paths, PATIENT)
    done: list[int] = []

    def on_progress(progress: StepProgress) -> None:
        if progress.phase == phase and not done and (progress.metrics or phase != "training"):
            done.append(len(steps(paths)))
            how(process)

    return await asyncio.wait_for(process.wait(on_progress), 120), done[0]


def kill(process: WorkerProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)


def terminate(process: WorkerProcess) -> None:
    os.kill(process.pid, signal.SIGTERM)


def fill_the_disk(process: WorkerProcess) -> None:
    psutil.Process(process.pid).rlimit(psutil.RLIMIT_FSIZE, (1, 1))


async def test_a_kill_in_any_phase_is_told_and_the_next_worker_succeeds(tmp_path: Path, model: Path) -> None:
    phases = ["loading", "reference", "training", "evaluating"]
    rounds = [
        make_round(tmp_path / phase, model, heldout=rows(2, 50), probe_prompts=["Hello"], settings=SHORT)
        for phase in phases
    ]
    outcomes = await asyncio.gather(
        *(disturb(paths, phase, kill) for paths, phase in zip(rounds, phases, strict=True))
    )
    for paths, (outcome, _) in zip(rounds, outcomes, strict=True):
        assert outcome.kind == "killed"
        assert "SIGKILL" in outcome.reason
        assert not paths.adapter.exists()
        assert not paths.report.exists()
    again = await WorkerProcess.start(rounds[2], PATIENT)
    seen: list[StepProgress] = []
    outcome = await asyncio.wait_for(again.wait(seen.append), 120)
    assert (outcome.kind, outcome.reason) == ("ok", "")
    assert outcome.report == read_report(rounds[2])
    assert seen[-1].phase == "done"
    assert rounds[2].adapter.is_dir()


async def test_cancels_and_a_full_disk_end_a_training_without_an_adapter(tmp_path: Path, model: Path) -> None:
    ways = {
        "file": WorkerProcess.cancel,
        "signal": terminate,
        "full disk": fill_the_disk,
    }
    rounds = {name: make_round(tmp_path / name, model, settings=SLOW) for name in ways}
    ended = dict(
        zip(
            ways,
            await asyncio.gather(*(disturb(rounds[name], "training", how) for name, how in ways.items())),
            strict=True,
        )
    )
    assert ended["file"][0] == WorkerOutcome("cancelled", "The round was cancelled")
    assert ended["signal"][0].kind == "killed"  # nobody cancelled: the studio starts it again
    for name in ("file", "signal"):
        _, num_before = ended[name]
        # One step may be under way, and steps pass unseen between two looks.
        assert len(steps(rounds[name])) <= num_before + 5
    # Where even the report cannot be written, the exit alone must tell.
    assert ended["full disk"][0].kind == "failed"
    assert ended["full disk"][0].reason
    assert not any(paths.adapter.exists() for paths in rounds.values())


def steps(paths: RoundPaths) -> list[int]:
    return [progress.step for progress in read_progress(paths) if progress.metrics]


def test_a_worker_whose_parent_is_gone_dies_with_it(tmp_path: Path, model: Path) -> None:
    paths = make_round(tmp_path, model, settings=SLOW)
    with worker(paths) as process:
        deadline = time.monotonic() + 60
        while not steps(paths) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(5) == -signal.SIGKILL
    assert not paths.adapter.exists()


def test_two_processes_under_accelerate_train_the_same_adapter(tmp_path: Path, model: Path) -> None:
    options: dict[str, Any] = {
        "train": rows(7),
        "heldout": rows(3, 50),
        "probe_prompts": ["Hello"],
        "settings": QUICK,
    }
    alone, together = (make_round(tmp_path / name, model, **options) for name in ("alone", "together"))
    with worker(alone) as process:
        assert process.wait(60) == 0
    launched = subprocess.run(
        [
            *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"),
            *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
            *("--main_process_port", "0", "-m", "dpo_studio.training.worker", str(together.root)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        env=ENVIRONMENT | {"HOME": str(tmp_path)},
    )
    assert launched.returncode == 0, launched.stderr
    first, second = read_report(alone), read_report(together)
    assert second.metrics == pytest.approx(first.metrics, rel=1e-3, abs=1e-4)
    assert second.heldout_margins == pytest.approx(first.heldout_margins, abs=1e-4)
    tensors = [load_file(paths.adapter / "adapter_model.safetensors") for paths in (alone, together)]
    torch.testing.assert_close(tensors[1], tensors[0], atol=1e-4, rtol=1e-3)
    assert len(steps(together)) == first.num_steps, "only the main process reports"
