"""Versions: what can be served. Immutable once named."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Manifest:
    """`MANIFEST.json`, written last: a version folder without a valid one does not exist."""

    version: str
    round: int
    model: str
    model_sha256: str
    tokenizer_sha256: str
    dataset_sha256: str
    code_version: str
    created_at: str
    """ISO 8601, UTC."""
    files: dict[str, str]
    """Relative path → sha256 of every file but the manifest itself."""
