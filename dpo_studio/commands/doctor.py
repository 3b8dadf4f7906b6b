"""`dpo-studio doctor`: what is installed, how the database is, whether every version is whole."""

import platform
from collections.abc import Iterator
from importlib import metadata

from dpo_studio import __version__
from dpo_studio.commands.data import opened
from dpo_studio.errors import StorageError, StudioError
from dpo_studio.paths import StoragePaths
from dpo_studio.rounds import registry
from dpo_studio.settings import Settings
from dpo_studio.store import versions
from dpo_studio.store.database import Database
from dpo_studio.store.doctor import DoctorReport

PACKAGES = ("torch", "transformers", "peft", "gradio", "fastapi", "sqlmodel", "safetensors", "bitsandbytes")


def examine(settings: Settings) -> Iterator[str]:
    """Lines of findings. Raises StorageError at the end when something needs a person."""
    yield f"dpo-studio {__version__} · Python {platform.python_version()} · {platform.system()}"
    yield " · ".join(f"{name} {_installed(name)}" for name in PACKAGES)
    with opened(settings, must_exist=True) as database:
        report = database.check()
        damaged = damaged_versions(database, settings.paths)
    yield from _database_lines(settings.paths, report)
    problems = [*report.problems, *damaged]
    yield from (f"problem   {problem}" for problem in problems)
    if problems:
        raise StorageError(f"doctor: expected no problems, found {len(problems)}; they are listed above")
    yield "healthy"


def damaged_versions(database: Database, paths: StoragePaths) -> list[str]:
    """One sentence for each published version whose folder fails its manifest."""
    with database.read() as session:
        names = [record.name for record in versions.list_versions(session=session)]
    problems = []
    for name in names:
        try:
            registry.verify(paths.version(name))
        except StudioError as error:
            problems.append(f"version {name}: {error}")
    return problems


def _database_lines(paths: StoragePaths, report: DoctorReport) -> Iterator[str]:
    filesystem = report.filesystem or "unknown filesystem"
    yield f"storage   {paths.root} ({filesystem}, {_size(report.free_bytes)} free)"
    schema = f"schema {report.schema_revision}, SQLite {report.sqlite_version}"
    yield f"database  {_size(report.size_bytes)}, {schema}"
    yield f"journal   {report.journal_mode}: {report.journal_reason}"
    settings = (("synchronous=FULL", report.synchronous_full), ("foreign keys", report.foreign_keys))
    yield "safety    " + ", ".join(f"{name} {'on' if is_on else 'OFF'}" for name, is_on in settings)
    integrity = "ok" if not report.integrity else f"{len(report.integrity)} findings"
    yield f"integrity {integrity}, {report.foreign_key_violations} broken references"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # Everything but 4-bit weights works without it.
        return "not installed (for --dtype nf4)" if package == "bitsandbytes" else "missing"


def _size(size_bytes: int) -> str:
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.1f} GiB"
    return f"{size_bytes / (1 << 20):.1f} MiB"
