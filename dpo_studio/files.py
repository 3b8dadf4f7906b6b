"""Files that are either whole or absent.

Every write under storage/ goes through here: write beside, fsync, rename, fsync the folder. A crash at
any moment leaves the old file or the new one, never half of one (the order follows ALICE, OSDI'14).
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_TEMPORARY_PREFIX = ".tmp-"


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data`, durably. Creates parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_TEMPORARY_PREFIX}{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by canonical, indented JSON."""
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Replace `path` by one canonical JSON value a line."""
    write_bytes(path, "".join(canonical_json(row) + "\n" for row in rows).encode())


def read_json(path: Path) -> Any:
    """The JSON value in `path`."""
    return json.loads(path.read_text("utf-8"))


def read_jsonl(path: Path) -> Iterator[Any]:
    """The values of a JSONL file; a last line without its newline is a torn append and is left out."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            if line.strip():
                yield json.loads(line)


def append_jsonl(path: Path, row: Any) -> None:
    """Append one line with a single write. Not fsynced: progress may lose its tail, never its middle."""
    data = (canonical_json(row) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN. Equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_of_bytes(data: bytes) -> str:
    """`sha256:<hex>` of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def sha256_of_file(path: Path) -> str:
    """`sha256:<hex>` of a file's content."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def sha256_of_tree(folder: Path) -> dict[str, str]:
    """Relative POSIX path → sha256, for every regular file below `folder`, sorted by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in files}


def publish_folder(temporary: Path, final: Path) -> None:
    """Make a finished folder visible under its final name in one step.

    Every file and folder below is fsynced first. Raises FileExistsError when `final` exists: what is
    published is never replaced.
    """
    if final.exists():
        raise FileExistsError(f"{final} exists already")
    for path in sorted(temporary.rglob("*"), reverse=True):
        if path.is_dir():
            sync_folder(path)
        else:
            _sync_file(path)
    sync_folder(temporary)
    temporary.rename(final)
    sync_folder(final.parent)


def temporary_name(path: Path) -> Path:
    """A sibling of `path` that `sweep_temporaries` recognises as unfinished."""
    return path.with_name(f"{_TEMPORARY_PREFIX}{os.getpid()}-{path.name}")


def find_temporaries(folder: Path) -> list[Path]:
    """What unfinished writes left directly in `folder`."""
    return sorted(folder.glob(f"{_TEMPORARY_PREFIX}*"))


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network filesystems know no fsync of folders; a real fault must be heard.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
