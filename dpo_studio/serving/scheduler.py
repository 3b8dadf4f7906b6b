"""Who runs: waiting requests, the one being prefilled, and the dense rows that decode. No tensors.

Live requests go before background ones; background never takes the last `reserved_rows`. Within a priority
the order is the order of arrival. Rows 0 … n-1 are always the running ones: when one ends, the last row
moves into the hole, and the caller must move its cache the same way.
"""

from collections import deque
from dataclasses import dataclass

from dpo_studio.errors import BadInput, Busy
from dpo_studio.serving.sequence import Group, Sample


@dataclass(frozen=True, slots=True)
class Running:
    """One decoding row."""

    group: Group
    sample: Sample


class Scheduler:
    """The queue and the rows of one engine."""

    def __init__(self, num_rows: int, max_waiting: int, reserved_rows: int) -> None:
        self._num_rows = num_rows
        self._max_waiting = max_waiting
        self._background_rows = max(1, num_rows - reserved_rows)
        self._live: deque[Group] = deque()
        self._background: deque[Group] = deque()
        self._prefilling: Group | None = None
        self.rows: list[Running] = []

    @property
    def is_idle(self) -> bool:
        return not (self.rows or self._live or self._background or self._prefilling)

    def submit(self, group: Group) -> None:
        """Queue a request. Raises BadInput when it can never run, Busy when its queue is full."""
        n, queue = len(group.samples), self._live if group.is_live else self._background
        most = self._num_rows if group.is_live else self._background_rows
        if not 1 <= n <= most:
            raise BadInput(f"n: expected 1 to {most} samples, found {n}")
        if len(queue) >= self._max_waiting:
            raise Busy(
                f"The model has {len(queue)} requests waiting already; please ask again in a few seconds."
            )
        queue.append(group)

    def find(self, request_id: str) -> Group | None:
        """The request with this id, in whatever state it is."""
        prefilling = [self._prefilling] if self._prefilling else []
        running = [row.group for row in self.rows]
        known = (*self._live, *self._background, *prefilling, *running)
        return next((group for group in known if group.request.request_id == request_id), None)

    def groups(self) -> list[Group]:
        """The requests that have rows or are being prefilled, each once."""
        prefilling = [self._prefilling] if self._prefilling else []
        return list(dict.fromkeys([*(row.group for row in self.rows), *prefilling]))

    def next_prefill(self) -> Group | None:
        """The request whose prompt is to be read now. A half-read one goes on before another begins."""
        if self._prefilling is None and self._live:
            if len(self.rows) + len(self._live[0].samples) <= self._num_rows:
                self._prefilling = self._live.popleft()
        elif self._prefilling is None and self._background:
            used = sum(not row.group.is_live for row in self.rows)
            n = len(self._background[0].samples)
            if len(self.rows) + n <= self._num_rows and used + n <= self._background_rows:
                self._prefilling = self._background.popleft()
        return self._prefilling

    def place(self, group: Group) -> list[int]:
        """Give the prefilled request its rows, in the order of its samples."""
        assert group is self._prefilling
        self._prefilling = None
        first = len(self.rows)
        for sample in group.samples:
            sample.row = len(self.rows)
            self.rows.append(Running(group, sample))
        return list(range(first, len(self.rows)))

    def remove(self, sample: Sample) -> tuple[int, int] | None:
        """Free a row. Returns (source, target) when the last row has to move into the hole."""
        hole, last = sample.row, len(self.rows) - 1
        assert self.rows[hole].sample is sample
        moved = self.rows.pop()
        sample.row = -1
        if hole == last:
            return None
        self.rows[hole] = moved
        moved.sample.row = hole
        return last, hole

    def forget(self, group: Group) -> None:
        """Drop a request that has no rows (yet)."""
        if self._prefilling is group:
            self._prefilling = None
        for queue in (self._live, self._background):
            if group in queue:
                queue.remove(group)
