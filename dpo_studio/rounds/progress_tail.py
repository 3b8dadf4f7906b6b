"""Follow a worker's `progress.jsonl` while it grows."""

import json
from pathlib import Path

from dpo_studio.domain.codec import from_json
from dpo_studio.domain.round import StepProgress
from dpo_studio.errors import BadInput


def steps_until(path: Path, last: int) -> list[StepProgress]:
    """The steps up to step `last` that workers took, in order; of one taken anew, the newest line."""
    _, news = ProgressTail(path, from_start=True).read()
    by_number = {found.step: found for found in news if found.metrics and found.step <= last}
    return [by_number[number] for number in sorted(by_number)]


class ProgressTail:
    """Reads what was appended since the last read. A torn last line waits for its rest."""

    def __init__(self, path: Path, *, from_start: bool = False) -> None:
        """Starts at the present end of the file, if not `from_start`; the file need not exist yet."""
        self._path = path
        self._offset = path.stat().st_size if path.exists() and not from_start else 0
        self._last: StepProgress | None = None

    def read(self) -> tuple[int, list[StepProgress]]:
        """(number of new lines, those that say something new).

        A heartbeat (same phase and step as before, no metrics) is counted and left out. So is a line that
        is no progress: the worker may be of another version, and is alive all the same.
        """
        if not self._path.exists():
            return 0, []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = whole.splitlines()
        news = [progress for line in lines if (progress := self._news(line)) is not None]
        return len(lines), news

    def _news(self, line: bytes) -> StepProgress | None:
        try:
            progress = from_json(StepProgress, json.loads(line))
        except (BadInput, ValueError):
            return None
        last = self._last
        is_repeat = last is not None and (last.phase, last.step) == (progress.phase, progress.step)
        if is_repeat and not progress.metrics:
            return None
        self._last = progress
        return progress
