"""A worker killed in the middle of training, and the next one on the same folder: as if nothing had been."""

import dataclasses
import errno
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from dpo_studio.domain.round import RoundReport, TrainSettings
from dpo_studio.paths import RoundPaths
from dpo_studio.training.attempt import EXIT_OK
from dpo_studio.training.lifeline import Cancellation
from dpo_studio.training.worker import main
from tests.training.rounds import make_round, read_progress, read_report, rows, worker

pytestmark = pytest.mark.usefixtures("signals")
# Step 10 is within the second of three epochs of 8 steps.
SETTINGS = TrainSettings(epochs=3, batch_size=1, learning_rate=1e-3, lora_rank=4)
# Held-out pairs that want the contrary of what is trained: their loss only rises.
OPPOSITE = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows(3, 100)]


def options(settings: TrainSettings, **changes: Any) -> dict[str, Any]:
    return {
        "train": rows(8),
        "heldout": OPPOSITE,
        "probe_prompts": ["Hello"],
        "settings": settings,
        "checkpoint_every_s": 0.0,
        **changes,
    }


def steps(paths: RoundPaths) -> list[int]:
    return [progress.step for progress in read_progress(paths) if progress.metrics]


def kill_after(paths: RoundPaths, step: int) -> int:
    """Start a worker and kill it when it has taken so many steps. Returns the last it reported."""
    deadline = time.monotonic() + 60
    with worker(paths) as process:
        while max(steps(paths), default=0) < step:
            assert process.poll() is None and time.monotonic() < deadline, "it must be killed in training"
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not paths.report.exists() and not paths.adapter.exists()
    return max(steps(paths))


def finish(paths: RoundPaths) -> RoundReport:
    assert main([str(paths.root)]) == EXIT_OK
    return read_report(paths)


def without_time(report: RoundReport) -> RoundReport:
    return dataclasses.replace(report, train_seconds=0.0, notes=())


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changes", "kills", "note"),
    [
        ({}, [5, 14], ""),
        # The guard's last healthy adapter, of step 15, is in the checkpoint alone.
        ({"epochs": 60, "learning_rate": 2e-3}, [17], "drifted too far"),
        # So is the best epoch's, which the killed worker had found.
        ({"epochs": 9, "early_stop_patience": 2}, [9], "was kept"),
    ],
)
def test_a_killed_training_goes_on_to_the_same_bits(
    tmp_path: Path, model: Path, changes: dict[str, Any], kills: list[int], note: str
) -> None:
    settings = dataclasses.replace(SETTINGS, **changes)
    expected = finish(make_round(tmp_path / "whole", model, **options(settings)))
    assert any(note in sentence for sentence in expected.notes) or not note
    killed = make_round(tmp_path / "killed", model, **options(settings))
    last = [kill_after(killed, step) for step in kills][-1]
    num_before = len(steps(killed))
    report = finish(killed)
    assert without_time(report) == without_time(expected)
    resumed_at = steps(killed)[num_before]
    assert kills[-1] <= resumed_at <= last + 1, "training must not have begun again"
    assert report.notes[0] == f"Training was interrupted and continued after step {resumed_at - 1}."
    assert not killed.checkpoint.exists()


@pytest.fixture
def interrupted(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> RoundPaths:
    """A round whose worker was stopped by SIGTERM, as when the machine goes down: it keeps its checkpoint."""
    paths = make_round(tmp_path / "round", model, **options(SETTINGS))
    with monkeypatch.context() as patch:
        patch.setattr(Cancellation, "requested", lambda _: len(steps(paths)) >= 10)
        assert main([str(paths.root)]) != EXIT_OK
    assert paths.checkpoint.is_file()
    paths.progress.unlink()
    return paths


def test_a_stopped_training_goes_on(interrupted: RoundPaths) -> None:
    assert main([str(interrupted.root)]) == EXIT_OK
    assert steps(interrupted)[0] == 11
    report = read_report(interrupted)
    assert report.num_reference_computed == 11, "counted by the first worker"


def test_a_person_who_cancels_leaves_no_checkpoint(interrupted: RoundPaths) -> None:
    interrupted.cancel.touch()
    assert main([str(interrupted.root)]) != EXIT_OK
    assert not interrupted.checkpoint.exists()


def test_a_damaged_checkpoint_is_ignored_and_said(interrupted: RoundPaths) -> None:
    file = interrupted.checkpoint
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert main([str(interrupted.root)]) == EXIT_OK
    assert steps(interrupted)[0] == 1
    report = read_report(interrupted)
    assert report.notes == ("A checkpoint was damaged and was not used; training began anew.",)


def test_the_checkpoint_of_another_job_is_ignored_and_said(
    interrupted: RoundPaths, tmp_path: Path, model: Path
) -> None:
    settings = dataclasses.replace(SETTINGS, beta=0.2)
    other = make_round(tmp_path / "other", model, **options(settings))
    interrupted.checkpoint.rename(other.checkpoint)
    assert main([str(other.root)]) == EXIT_OK
    assert steps(other)[0] == 1
    assert "belonged to another job" in read_report(other).notes[0]


def test_a_checkpoint_that_cannot_be_written_does_not_end_training(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dpo_studio.training.checkpoint.write_bytes", full_disk)
    paths = make_round(tmp_path, model, **options(SETTINGS))
    assert main([str(paths.root)]) == EXIT_OK
    assert "The checkpoint could not be written: [Errno 28] No space left on device" in caplog.messages


def test_half_a_checkpoint_beside_its_place_is_swept_away(tmp_path: Path, model: Path) -> None:
    """It is a file, and only folders were removed."""
    paths = make_round(tmp_path, model, **options(SETTINGS))
    leftover = paths.root / ".tmp-1-checkpoint"
    leftover.write_bytes(b"half")
    assert main([str(paths.root)]) == EXIT_OK
    assert not leftover.exists()


@pytest.mark.parametrize(("patience", "kept", "taken"), [(0, 24, 24), (1, 8, 16), (2, 8, 24), (9, 8, 24)])
def test_early_stop_keeps_the_epoch_with_the_lowest_held_out_loss(
    tmp_path: Path, model: Path, patience: int, kept: int, taken: int
) -> None:
    """The held-out loss rises from the first epoch on; that one stays also when training came to its end."""
    settings = dataclasses.replace(SETTINGS, early_stop_patience=patience)
    paths = make_round(tmp_path, model, **options(settings))
    assert main([str(paths.root)]) == EXIT_OK
    report = read_report(paths)
    losses = {p.step: p.metrics["heldout/loss"] for p in read_progress(paths) if "heldout/loss" in p.metrics}
    assert sorted(losses.values()) == list(losses.values())
    assert (report.num_steps, max(steps(paths))) == (kept, taken)
    assert report.metrics["heldout/loss"] == losses[kept]
    if patience:
        (note,) = report.notes
        assert note.startswith(f"The adapter after step 8 of {taken} was kept: its held-out loss of ")
    else:
        assert report.notes == ()


def test_early_stop_without_held_out_pairs_is_said(tmp_path: Path, model: Path) -> None:
    settings = dataclasses.replace(SETTINGS, early_stop_patience=1)
    paths = make_round(tmp_path, model, **options(settings, heldout=[]))
    assert main([str(paths.root)]) == EXIT_OK
    report = read_report(paths)
    assert report.num_steps == 24
    assert report.notes == ("Early stop had no held-out pairs to watch.",)
