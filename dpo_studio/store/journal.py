"""Which journal mode is safe on which SQLite: a pure decision.

SQLite 3.7.0 to 3.51.2 can drop or damage committed data in WAL mode when two connections write or
checkpoint at the same moment (the "WAL-reset bug"); 3.50.7 and 3.44.6 carry the fix. A studio writes from
many threads, so on every other version the journal is TRUNCATE, which is nearly as fast here.
"""

from dataclasses import dataclass
from typing import Literal

JournalMode = Literal["wal", "truncate"]
FIXED_IN = (3, 51, 3)
FIXED_BRANCHES = {(3, 50): 7, (3, 44): 6}
"""(major, minor) → first patch release with the fix."""


@dataclass(frozen=True, slots=True)
class JournalChoice:
    """The mode every connection must use, and why."""

    mode: JournalMode
    reason: str


def choose_journal(sqlite_version: tuple[int, int, int]) -> JournalChoice:
    """WAL where the WAL-reset bug is fixed, TRUNCATE elsewhere."""
    name = ".".join(str(part) for part in sqlite_version)
    fixed_patch = FIXED_BRANCHES.get(sqlite_version[:2])
    is_fixed = sqlite_version >= FIXED_IN or (fixed_patch is not None and sqlite_version[2] >= fixed_patch)
    if is_fixed:
        return JournalChoice("wal", f"SQLite {name} has the fix of the WAL-reset bug, so WAL is safe")
    return JournalChoice(
        "truncate", f"SQLite {name} has the WAL-reset bug (fixed in 3.51.3), so WAL is not used"
    )
