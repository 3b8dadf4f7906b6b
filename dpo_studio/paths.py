"""The only place that spells a name under storage/."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StoragePaths:
    """Names below one storage root. Nothing is created here."""

    root: Path

    @property
    def database(self) -> Path:
        return self.root / "studio.db"

    @property
    def rounds(self) -> Path:
        return self.root / "rounds"

    @property
    def versions(self) -> Path:
        return self.root / "versions"

    @property
    def engine_log(self) -> Path:
        return self.root / "engine.log"

    @property
    def cache(self) -> Path:
        """Gradio's temporary files; private to the studio, safe to delete when it is not running."""
        return self.root / "cache"

    @property
    def reference_cache(self) -> Path:
        """Reference log-probabilities kept across rounds; safe to delete at any time."""
        return self.root / "reference"

    def round(self, number: int) -> "RoundPaths":
        return RoundPaths(self.rounds / f"{number:04d}")

    def version(self, name: str) -> Path:
        """The folder of a published version. `base` has none."""
        return self.versions / name


@dataclass(frozen=True, slots=True)
class RoundPaths:
    """Names inside one round's folder."""

    root: Path

    @property
    def job(self) -> Path:
        return self.root / "job.json"

    @property
    def train(self) -> Path:
        return self.root / "train.jsonl"

    @property
    def heldout(self) -> Path:
        return self.root / "heldout.jsonl"

    @property
    def progress(self) -> Path:
        return self.root / "progress.jsonl"

    @property
    def report(self) -> Path:
        return self.root / "report.json"

    @property
    def adapter(self) -> Path:
        return self.root / "adapter"

    @property
    def log(self) -> Path:
        return self.root / "train.log"

    @property
    def cancel(self) -> Path:
        """When this file exists the worker stops within one step."""
        return self.root / "cancel"

    @property
    def checkpoint(self) -> Path:
        """Where a killed worker stood; goes with the report."""
        return self.root / "checkpoint"


VERSION_MANIFEST = "MANIFEST.json"
