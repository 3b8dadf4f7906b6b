"""What is read of a worker's progress file, beyond what the launcher's tests show."""

from pathlib import Path

from dpo_studio.domain.codec import to_json
from dpo_studio.domain.round import StepProgress
from dpo_studio.files import append_jsonl
from dpo_studio.rounds.progress_tail import steps_until


def test_of_a_step_that_was_taken_twice_the_newest_line_counts(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    for step, loss in ((1, 0.7), (2, 0.6), (3, 0.5), (2, 0.61), (3, 0.51)):
        append_jsonl(path, to_json(StepProgress("training", step, 4, 0.0, {"loss": loss})))
    assert [(found.step, found.metrics["loss"]) for found in steps_until(path, 2)] == [(1, 0.7), (2, 0.61)]


def test_a_half_written_line_and_a_heartbeat_are_no_steps(tmp_path: Path) -> None:
    """A worker killed while it wrote leaves half a line, and the next one's first line continues it."""
    path = tmp_path / "progress.jsonl"
    append_jsonl(path, to_json(StepProgress("training", 1, 4, 0.0, {"loss": 0.7})))
    with path.open("a") as file:
        file.write('{"phase": "trai')
    append_jsonl(path, to_json(StepProgress("loading", 0, 0, 0.0, {})))
    append_jsonl(path, to_json(StepProgress("training", 1, 4, 0.0, {})))
    assert [found.step for found in steps_until(path, 4)] == [1]


def test_no_file_has_no_steps(tmp_path: Path) -> None:
    assert steps_until(tmp_path / "progress.jsonl", 9) == []
