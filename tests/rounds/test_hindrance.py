"""What keeps a worker from going on in a round's folder, one hindrance at a time."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpo_studio import __version__
from dpo_studio.domain.codec import to_json
from dpo_studio.domain.round import RoundJob, TrainSettings
from dpo_studio.files import sha256_of_file, write_json
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.hindrance import ROOM_BYTES, hindrance


def planned(folder: Path, code_version: str = __version__) -> RoundPaths:
    """A round's folder as its preparation leaves it."""
    paths = RoundPaths(folder)
    paths.train.write_text("{}\n")
    paths.heldout.write_text("")
    job = RoundJob(
        round=1,
        model="model",
        model_sha256="sha256:model",
        settings=TrainSettings(),
        train_sha256=sha256_of_file(paths.train),
        heldout_sha256=sha256_of_file(paths.heldout),
        num_train=1,
        num_heldout=0,
        code_version=code_version,
    )
    write_json(paths.job, to_json(job))
    return paths


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_folder_as_it_was_planned_can_be_used(tmp_path: Path, has_checkpoint: bool) -> None:
    paths = planned(tmp_path)
    if has_checkpoint:
        paths.checkpoint.touch()
    assert hindrance(paths) == ""


@pytest.mark.parametrize(
    "harm",
    [
        lambda paths: paths.job.unlink(),
        lambda paths: paths.job.write_text("{"),
        lambda paths: paths.job.write_text("{}"),
        lambda paths: paths.train.unlink(),
        lambda paths: shutil.rmtree(paths.root),
    ],
)
def test_a_folder_without_a_whole_plan_cannot(tmp_path: Path, harm: Callable[[RoundPaths], object]) -> None:
    (tmp_path / "round").mkdir()
    paths = planned(tmp_path / "round")
    harm(paths)
    assert "no plan" in hindrance(paths)


def test_other_code_goes_on_with_nothing(tmp_path: Path) -> None:
    assert hindrance(planned(tmp_path, "0.0.1")) == f"it was begun by version 0.0.1 and this is {__version__}"


def test_changed_data_is_named(tmp_path: Path) -> None:
    paths = planned(tmp_path)
    paths.heldout.write_text("{}\n")
    assert hindrance(paths).startswith("heldout.jsonl ")


def test_a_folder_that_cannot_be_written_is_of_no_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))
    assert hindrance(planned(tmp_path)) == "its folder cannot be written"


def test_there_must_be_room_for_what_a_worker_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = planned(tmp_path)
    paths.checkpoint.write_bytes(b"x" * 1000)
    needed = ROOM_BYTES + 2000
    for free, is_enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert (hindrance(paths) == "") is is_enough
