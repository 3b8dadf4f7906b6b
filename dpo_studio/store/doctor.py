"""What `dpo-studio doctor` reports of the database and its disk. Looks, never repairs."""

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import Connection

from dpo_studio.store.journal import JournalChoice

NETWORK_FILESYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb", "smb2", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre")
)
"""SQLite's locks are not to be trusted on these (sqlite.org/faq q5)."""
FREE_FLOOR_BYTES = 1 << 30
MAX_FINDINGS = 20


@dataclass(frozen=True, slots=True)
class DoctorReport:
    """Findings; `problems` is what a person should act on."""

    sqlite_version: str
    journal_mode: str
    journal_reason: str
    synchronous_full: bool
    foreign_keys: bool
    schema_revision: str
    integrity: tuple[str, ...]
    """Empty when SQLite's own check finds nothing."""
    foreign_key_violations: int
    size_bytes: int
    free_bytes: int
    filesystem: str
    problems: tuple[str, ...]

    @property
    def is_healthy(self) -> bool:
        return not self.problems


def examine(connection: Connection, path: Path, journal: JournalChoice) -> DoctorReport:
    """Look at an open database. Reads every page."""

    def pragma(name: str) -> str:
        return str(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())

    integrity = _integrity(connection)
    orphans = len(connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall())
    revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
    free = shutil.disk_usage(path.parent).free
    filesystem = filesystem_of(path.parent)
    problems = [f"integrity_check: {line}; stop the studio and restore a backup" for line in integrity]
    if orphans:
        problems.append(f"foreign_key_check: {orphans} rows point at nothing; restore a backup")
    if filesystem in NETWORK_FILESYSTEMS:
        problems.append(f"storage is on {filesystem}: file locks are unsafe there; use a local disk")
    if free < FREE_FLOOR_BYTES:
        problems.append(f"expected at least 1 GiB of free disk, found {free >> 20} MiB; free some space")
    return DoctorReport(
        sqlite_version=sqlite3.sqlite_version,
        journal_mode=pragma("journal_mode"),
        journal_reason=journal.reason,
        synchronous_full=pragma("synchronous") == "2",
        foreign_keys=pragma("foreign_keys") == "1",
        schema_revision=str(revision),
        integrity=integrity,
        foreign_key_violations=orphans,
        size_bytes=path.stat().st_size,
        free_bytes=free,
        filesystem=filesystem,
        problems=tuple(problems),
    )


def filesystem_of(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """Type of the filesystem that holds `folder`; empty where the system does not tell."""
    try:
        lines = mounts.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    found, longest = "", -1
    for line in lines:
        _device, place, kind, *_rest = line.split(" ")
        # The kernel writes spaces in paths as \040.
        mount = Path(place.replace("\\040", " "))
        if folder.resolve().is_relative_to(mount) and len(mount.parts) >= longest:
            found, longest = kind, len(mount.parts)
    return found


def _integrity(connection: Connection) -> tuple[str, ...]:
    lines = connection.exec_driver_sql(f"PRAGMA integrity_check({MAX_FINDINGS})").scalars().all()
    return () if lines == ["ok"] else tuple(str(line) for line in lines)
