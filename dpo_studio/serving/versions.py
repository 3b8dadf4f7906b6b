"""Which version sits in which adapter slot, who uses it, and who has to leave. No tensors.

`base` needs no slot and is always there. A version keeps its slot while any request uses it, also after it
was retired. A new one takes a free slot or that of the idle version used longest ago.
"""

from dataclasses import dataclass

from dpo_studio.domain.chat import BASE
from dpo_studio.errors import NotFound

BASE_SLOT = -1


@dataclass(slots=True)
class _Entry:
    slot: int
    used_at: int
    num_requests: int = 0
    is_retired: bool = False


class VersionTable:
    """Names, slots and reference counts."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._entries: dict[str, _Entry] = {}
        self._clock = 0

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names that new requests may use."""
        return (BASE, *sorted(name for name, entry in self._entries.items() if not entry.is_retired))

    def acquire(self, version: str) -> int:
        """Slot of a version, pinned until `release`. Raises NotFound."""
        if version == BASE:
            return BASE_SLOT
        entry = self._entries.get(version)
        if entry is None or entry.is_retired:
            raise NotFound(
                f"version: expected one of {', '.join(self.loaded)}, found {version!r}; load it first"
            )
        entry.num_requests += 1
        entry.used_at = self._tick()
        return entry.slot

    def release(self, version: str) -> None:
        """A request has ended."""
        if version == BASE:
            return
        entry = self._entries[version]
        assert entry.num_requests > 0
        entry.num_requests -= 1
        if entry.is_retired and not entry.num_requests:
            del self._entries[version]

    def revive(self, version: str) -> bool:
        """Whether the version is here already; one that was about to leave stays."""
        entry = self._entries.get(version)
        if entry is not None:
            entry.is_retired, entry.used_at = False, self._tick()
        return version == BASE or entry is not None

    def place(self, version: str) -> int | None:
        """A slot for a new version, None when all are in use."""
        slot = self._free_slot()
        if slot is not None:
            self._entries[version] = _Entry(slot, self._tick())
        return slot

    def retire(self, version: str) -> None:
        """No new requests; gone when the last one has ended. Unknown names are ignored."""
        entry = self._entries.get(version)
        if entry is None:
            return
        entry.is_retired = True
        if not entry.num_requests:
            del self._entries[version]

    def _free_slot(self) -> int | None:
        taken = {entry.slot for entry in self._entries.values()}
        for slot in range(self._num_slots):
            if slot not in taken:
                return slot
        idle = [(entry.used_at, name) for name, entry in self._entries.items() if not entry.num_requests]
        return self._entries.pop(min(idle)[1]).slot if idle else None

    def _tick(self) -> int:
        self._clock += 1
        return self._clock
