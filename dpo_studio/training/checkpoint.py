"""How far a round's training has come, in one file of its folder, for when the worker is killed.

The file is whole or absent, carries the sha256 of its own content, and names whom it belongs to: one that is
damaged, or of another job, is never gone on from. It holds tensors and JSON and no code (safetensors).
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dpo_studio import __version__
from dpo_studio.domain.codec import to_json
from dpo_studio.domain.round import RoundJob
from dpo_studio.files import canonical_json, sha256_of_bytes, write_bytes

State = dict[str, Any]
"""By name: tensors of any device, and JSON values."""

_VERSION = 1
# Writing may take this share of the time: an adapter of a large model on a slow disk takes seconds.
_MOST_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """What reading gave. Neither part where there is no file."""

    state: State | None = None
    fault: str = ""
    """Why a file that is there is of no use: the end of a sentence."""


class CheckpointFile:
    """The checkpoint of one owner. Written by one process."""

    def __init__(
        self, path: Path, owner: str, *, every_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """owner: from `owner_of`. every_s: seconds between two checkpoints; 0 for one at every occasion."""
        self._path = path
        self._owner = owner
        self._every_s = every_s
        self._clock = clock
        self._next = clock() + every_s

    @property
    def is_due(self) -> bool:
        return self._clock() >= self._next

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file, durably. Raises OSError."""
        started = self._clock()
        tensors = {name: _plain(value) for name, value in state.items() if isinstance(value, Tensor)}
        facts = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
        metadata = {"owner": self._owner, "facts": canonical_json(facts)}
        try:
            content = save(tensors, metadata)
            write_bytes(self._path, sha256_of_bytes(content).encode() + b"\n" + content)
        finally:
            took = self._clock() - started
            wait = max(self._every_s, took / _MOST_SHARE) if self._every_s else 0.0
            self._next = started + took + wait

    def read(self) -> Found:
        """The state in the file, on the CPU, if it is whole and belongs to the owner."""
        try:
            digest, _, content = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return Found()
        except OSError as error:
            return Found(fault=f"could not be read ({error.strerror})")
        if digest.decode("ascii", "replace") != sha256_of_bytes(content):
            return Found(fault="was damaged")
        try:
            metadata = _metadata(content)
            if metadata["owner"] != self._owner:
                return Found(fault="belonged to another job")
            return Found({**json.loads(metadata["facts"]), **load(content)})
        except (SafetensorError, ValueError, KeyError, TypeError):
            return Found(fault="had an unknown form")


def owner_of(job: RoundJob, layout: str, precision: str, num_processes: int) -> str:
    """Whose checkpoint it is: equal only where training would go the same way, step by step.

    precision: kind of device and type of the weights, both of which a job may leave open.
    """
    facts = {
        "job": to_json(job),
        "layout": layout,
        "precision": precision,
        "processes": num_processes,
        "libraries": [torch.__version__, transformers.__version__, peft.__version__],
        "code": __version__,
        "version": _VERSION,
    }
    return sha256_of_bytes(canonical_json(facts).encode())


def prefixed(prefix: str, state: Mapping[str, Any]) -> State:
    """The state of a part, as a part of the whole state."""
    return {f"{prefix}/{name}": value for name, value in state.items()}


def part(prefix: str, state: Mapping[str, Any]) -> State:
    """What `prefixed` put in."""
    start = f"{prefix}/"
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _metadata(content: bytes) -> dict[str, str]:
    """A safetensors file begins with the length of its header (8 bytes, little-endian), then the header."""
    length = int.from_bytes(content[:8], "little")
    metadata: dict[str, str] = json.loads(content[8 : 8 + length])["__metadata__"]
    return metadata
