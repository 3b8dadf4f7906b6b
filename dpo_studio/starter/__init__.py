"""The embedded starter chat model: where its folder is and which prompts come with it.

Free of torch and cheap to import; the recipe that made the weights lives in the other modules of this package
and is not needed at run time.
"""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["model_dir", "pinned_prompts", "seed_prompts", "smoke_prompts"]

_HERE = Path(__file__).resolve().parent


def model_dir() -> Path:
    """The folder with weights, tokenizer and chat template, as `from_pretrained` takes it."""
    return _HERE / "model"


def seed_prompts() -> tuple[str, ...]:
    """Some 200 everyday prompts that fill the label queue of a fresh studio."""
    return _read_prompts("seed_prompts.jsonl")


def smoke_prompts() -> tuple[str, ...]:
    """Twelve prompts for the health gate: ten in scope, two (the last) out of scope."""
    return _read_prompts("smoke_prompts.jsonl")


def pinned_prompts() -> tuple[str, ...]:
    """Six prompts that show well what votes change, for before/after pages."""
    return _read_prompts("pinned_prompts.jsonl")


def _read_prompts(name: str) -> tuple[str, ...]:
    lines = (_HERE / name).read_text(encoding="utf-8").splitlines()
    return tuple(json.loads(line)["prompt"] for line in lines if line.strip())
