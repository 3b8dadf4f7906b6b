"""The registry: `versions/vN/`, published whole or not at all, never changed, proved by a manifest.

A version is copied beside its final name, checked there, given its manifest last, fsynced and renamed.
What a crash leaves has a recognisable name and is swept at the next boot. No path is ever taken from a
request or from inside a folder.
"""

import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.domain.version import Manifest
from dpo_studio.errors import BadInput, Conflict, ModelError, StorageError
from dpo_studio.files import (
    find_temporaries,
    publish_folder,
    read_json,
    sha256_of_file,
    temporary_name,
    write_json,
)
from dpo_studio.paths import VERSION_MANIFEST, StoragePaths
from dpo_studio.rounds.adapter_check import ADAPTER_FILES, check_adapter, check_names

_NAME = re.compile(r"v[1-9][0-9]{0,8}")
_ASIDE = ".aside-"


def publish(
    adapter_folder: Path,
    *,
    name: str,
    round_number: int,
    model: str,
    model_sha256: str,
    tokenizer_sha256: str,
    dataset_sha256: str,
    code_version: str,
    now: datetime,
    paths: StoragePaths,
    expected_sha256: Mapping[str, str] | None = None,
) -> Path:
    """Copy a trained adapter to `versions/<name>`; returns that folder.

    `expected_sha256`: the hashes that the worker reported; a file that changed since is refused. Raises
    ModelError when the folder is not a whole, finite LoRA adapter, Conflict when the name is taken.
    """
    manifest = Manifest(
        version=name,
        round=round_number,
        model=model,
        model_sha256=model_sha256,
        tokenizer_sha256=tokenizer_sha256,
        dataset_sha256=dataset_sha256,
        code_version=code_version,
        created_at=now.astimezone(UTC).isoformat(),
        files={},
    )
    final = paths.version(_checked_name(name))
    if final.exists():
        raise Conflict(f"The version {name} exists already; published versions are never changed")
    check_names(adapter_folder, ADAPTER_FILES)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(final)
    _remove(temporary)
    try:
        _fill(temporary, adapter_folder, manifest, expected_sha256)
        publish_folder(temporary, final)
    except OSError as error:
        raise StorageError(f"The version {name} could not be written ({error}); free some space") from error
    finally:
        _remove(temporary)
    return final


def verify(folder: Path) -> Manifest:
    """Re-derive everything the manifest of a published folder claims. Raises ModelError."""
    check_names(folder, ADAPTER_FILES | {VERSION_MANIFEST})
    manifest = read_manifest(folder)
    if manifest.version != folder.name:
        raise ModelError(f"{folder}: expected the manifest of {folder.name}, found {manifest.version[:40]!r}")
    found = _hashes(folder)
    if manifest.files != found:
        wrong = sorted(set(manifest.files.items()) ^ set(found.items()))[0][0]
        raise ModelError(
            f"{folder}: {wrong[:80]} is not the file that was published; restore it from a backup or promote "
            "another version"
        )
    check_adapter(folder, beside=frozenset({VERSION_MANIFEST}))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """What a published folder says of itself, unchecked. Raises ModelError when it cannot be read."""
    try:
        return from_json(Manifest, read_json(folder / VERSION_MANIFEST), where=VERSION_MANIFEST)
    except (OSError, ValueError, RecursionError, BadInput) as error:
        raise ModelError(f"{folder}: expected a valid {VERSION_MANIFEST}, found {error}") from error


def sweep(paths: StoragePaths, *, named: Collection[str]) -> list[Path]:
    """Clean up after a crash, at boot, when nobody publishes. Returns what was removed or set aside.

    Unfinished writes are deleted. A whole version folder that no database row names (the crash fell
    between folder and row, or an older backup was restored) is renamed aside, so that its name is free
    again and nothing is lost.
    """
    swept = []
    for folder in (paths.versions, paths.rounds):
        for leftover in find_temporaries(folder):
            _remove(leftover)
            swept.append(leftover)
    for folder in sorted(paths.versions.glob("v*")):
        if _NAME.fullmatch(folder.name) and folder.name not in named:
            folder.rename(_free_name(folder))
            swept.append(folder)
    return swept


def _fill(
    temporary: Path, source: Path, manifest: Manifest, expected_sha256: Mapping[str, str] | None
) -> None:
    temporary.mkdir()
    for name in sorted(ADAPTER_FILES):
        shutil.copyfile(source / name, temporary / name, follow_symlinks=False)
    # The copy is checked, not the source: nobody else can change it any more.
    check_adapter(temporary)
    files = _hashes(temporary)
    if expected_sha256 is not None and dict(expected_sha256) != files:
        raise ModelError(f"{source}: the adapter is not the one that its worker reported; train again")
    write_json(temporary / VERSION_MANIFEST, to_json(replace(manifest, files=files)))


def _hashes(folder: Path) -> dict[str, str]:
    return {name: sha256_of_file(folder / name) for name in sorted(ADAPTER_FILES)}


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ModelError(f"version: expected a name like v7, found {name[:40]!r}")
    return name


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _free_name(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{_ASIDE}{folder.name}-{number}")).exists():
        number += 1
    return aside
