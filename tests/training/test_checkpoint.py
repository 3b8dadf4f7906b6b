"""The checkpoint file: whole or of no use, and only its owner's."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from dpo_studio.domain.round import RoundJob, TrainSettings
from dpo_studio.files import sha256_of_bytes
from dpo_studio.training.checkpoint import CheckpointFile, Found, owner_of, part, prefixed

STATE = {
    "weights": torch.tensor([[1.0, -2.5], [torch.pi, 1e-30]]),
    "sums": torch.tensor([1 / 3], dtype=torch.float64),
    "nothing": torch.empty(0, 2),
    "step": 7,
    "names": ["a", "b"],
    "is_kept": True,
}
JOB = RoundJob(7, "starter", "sha256:m", TrainSettings(), "sha256:t", "sha256:h", 9, 1)


def checkpoint(folder: Path, owner: str = "me") -> CheckpointFile:
    return CheckpointFile(folder / "checkpoint", owner, every_s=0.0)


def test_what_was_written_comes_back_to_the_bit(tmp_path: Path) -> None:
    checkpoint(tmp_path).write(STATE)
    found = checkpoint(tmp_path).read()
    assert found.fault == "" and found.state is not None
    assert found.state.keys() == STATE.keys()
    for name, value in STATE.items():
        if isinstance(value, torch.Tensor):
            assert found.state[name].dtype == value.dtype
            assert torch.equal(found.state[name], value)
        else:
            assert found.state[name] == value


def test_no_file_is_no_fault(tmp_path: Path) -> None:
    assert checkpoint(tmp_path).read() == Found()


def test_any_flipped_bit_is_damage(tmp_path: Path) -> None:
    """Of a tensor, of the header, of the digest: none may be trained on."""
    file = tmp_path / "checkpoint"
    checkpoint(tmp_path).write(STATE)
    whole = file.read_bytes()
    for position in range(0, len(whole), 37):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert checkpoint(tmp_path).read() == Found(fault="was damaged")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_half_a_file_is_damage(tmp_path: Path, share: float) -> None:
    file = tmp_path / "checkpoint"
    checkpoint(tmp_path).write(STATE)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    assert checkpoint(tmp_path).read() == Found(fault="was damaged")


def test_another_owners_is_left_alone(tmp_path: Path) -> None:
    checkpoint(tmp_path, "other").write(STATE)
    assert checkpoint(tmp_path).read() == Found(fault="belonged to another job")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (10**9).to_bytes(8, "little") + b"{}",
        save({"x": torch.zeros(1)}),
        save({"x": torch.zeros(1)}, {"owner": "me", "facts": "{"}),
        save({"x": torch.zeros(1)}, {"owner": "me", "facts": json.dumps(3)}),
    ],
)
def test_whole_but_unknown_content_is_of_no_use(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint").write_bytes(sha256_of_bytes(content).encode() + b"\n" + content)
    assert checkpoint(tmp_path).read() == Found(fault="had an unknown form")


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    assert "could not be read" in checkpoint(tmp_path).read().fault


def test_the_next_one_replaces_it_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = checkpoint(tmp_path)
    file.write(STATE)
    file.write({"step": 8})
    assert file.read().state == {"step": 8}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_it_is_due_by_the_clock_and_writing_takes_a_small_share_of_the_time(tmp_path: Path) -> None:
    # Read at the start, twice to look, when writing begins and ends, and twice to look again.
    times = iter([0.0, 29.0, 30.0, 100.0, 104.0, 183.0, 185.0])
    file = CheckpointFile(tmp_path / "c", "me", every_s=30.0, clock=lambda: next(times))
    assert [file.is_due, file.is_due] == [False, True]
    file.write(STATE)
    # Writing took 4 s: at a twentieth of the time, the next is 80 s later.
    assert [file.is_due, file.is_due] == [False, True]


def test_a_failed_writing_is_not_tried_again_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    file = CheckpointFile(tmp_path / "file" / "c", "me", every_s=30.0)
    with pytest.raises(OSError, match="file"):
        file.write(STATE)
    assert not file.is_due


@pytest.mark.parametrize(
    "change", [{"train_sha256": "x"}, {"settings": TrainSettings(beta=0.2)}, {"round": 8}]
)
def test_any_change_of_the_job_is_another_owner(change: dict[str, object]) -> None:
    other = dataclasses.replace(JOB, **change)  # type: ignore[arg-type]
    assert owner_of(JOB, "padded", "cpu", 1) == owner_of(JOB, "padded", "cpu", 1)
    assert owner_of(other, "padded", "cpu", 1) != owner_of(JOB, "padded", "cpu", 1)


def test_layout_precision_and_number_of_processes_are_part_of_the_owner() -> None:
    owners = {
        owner_of(JOB, layout, precision, size)
        for layout in ("padded", "packed")
        for precision in ("cpu", "cuda")
        for size in (1, 2)
    }
    assert len(owners) == 8


def test_parts_find_their_own_names_again() -> None:
    state = {**prefixed("guard", {"kept/0": 1, "step": 2}), **prefixed("early", {"step": 3})}
    assert part("guard", state) == {"kept/0": 1, "step": 2}
    assert part("early", state) == {"step": 3}
