"""Reference log-probabilities kept on disk across rounds.

With base as the reference, a pair's two numbers (a ranking's: one for each response) never change, and every
round trains on all pairs again: only new pairs need a forward. A number is found again only under the very
same weights, adapter, precision, device kind, layout and objective, and for the very same tokens of prompt
and all responses. The file may be deleted at any time.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpo_studio.dpo.batches import TokenPair, most_responses
from dpo_studio.files import canonical_json, read_jsonl, sha256_of_bytes, write_jsonl


@dataclass(frozen=True, slots=True)
class ReferenceKey:
    """Everything beside the pair that a reference log-probability depends on."""

    model_sha256: str
    adapter_sha256: str
    """Of the reference's adapter files; empty for base."""
    dtype: str
    """As the base model's `precision` says: weights in 4 bits are other weights."""
    device: str
    """Kind, not number: "cpu", "cuda"."""
    layout: str
    layout_version: int
    tail_weight: float
    torch_version: str = torch.__version__


class ReferenceCache:
    """The numbers under one key, in one file. Read whole; written whole, durably."""

    def __init__(self, folder: Path, key: ReferenceKey) -> None:
        name = sha256_of_bytes(canonical_json(asdict(key)).encode()).removeprefix("sha256:")
        self._path = folder / f"{name[:32]}.jsonl"

    def find(self, pairs: Sequence[TokenPair]) -> Tensor:
        """(pairs, most responses) float64, best to worst: NaN where nothing is known, 0 where there is no
        response.
        """
        known = self._read()
        found = torch.zeros(len(pairs), most_responses(pairs), dtype=torch.float64)
        for row, pair in zip(found, pairs, strict=True):
            count = len(pair.responses)
            numbers = known.get(_pair_sha256(pair), ())
            usable = numbers if len(numbers) == count else (math.nan,) * count
            row[:count] = torch.tensor(usable, dtype=found.dtype)
        return found

    def keep(self, pairs: Sequence[TokenPair], logps: Tensor) -> None:
        """Add what was scored. logps: (pairs, responses); what is not finite is not kept."""
        known = self._read()
        for pair, row in zip(pairs, logps.tolist(), strict=True):
            numbers = tuple(row[: len(pair.responses)])
            if all(map(math.isfinite, numbers)):
                known[_pair_sha256(pair)] = numbers
        write_jsonl(self._path, ({"pair": pair, "logps": logps} for pair, logps in known.items()))

    def _read(self) -> dict[str, tuple[float, ...]]:
        known: dict[str, tuple[float, ...]] = {}
        # A file that cannot be read is worth no more than none: everything is scored anew.
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            for row in read_jsonl(self._path):
                known[str(row["pair"])] = tuple(map(float, row["logps"]))
        return known


def _pair_sha256(pair: TokenPair) -> str:
    return sha256_of_bytes(canonical_json([pair.prompt, *pair.responses]).encode())
