"""Identity and shape of a model folder, read from the files without loading them.

Only safetensors count: a folder with nothing but pickled weights (.bin, .pt) is refused.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_studio.errors import ModelError
from dpo_studio.files import sha256_of_file

FULL_HASH_BYTES = 1_000_000_000
_SAMPLE_BYTES = 1_048_576
_NUM_SAMPLES = 16
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """What the weight files of one folder say of themselves."""

    paths: tuple[Path, ...]
    num_parameters: int
    dtype: str
    """The dtype of most elements, in torch's spelling."""


_DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def inspect_weights(folder: Path) -> WeightFiles:
    """Read the headers of all safetensors files. Raises ModelError when there are none or one is broken."""
    paths = tuple(sorted(folder.glob("*.safetensors")))
    if not paths:
        raise ModelError(
            f"model: expected *.safetensors in {folder}, found none; convert the weights with "
            "save_pretrained (pickled weights are never read)"
        )
    sizes: Counter[str] = Counter()
    for path in paths:
        for name, entry in _header(path).items():
            if name != "__metadata__":
                size = 1
                for length in entry["shape"]:
                    size *= length
                sizes[entry["dtype"]] += size
    main = sizes.most_common(1)[0][0] if sizes else "F32"
    return WeightFiles(paths, sizes.total(), _DTYPES.get(main, main.lower()))


def weights_sha256(folder: Path, weights: WeightFiles) -> str:
    """Identity of config and weights.

    Below 1 GB every byte counts. Above, hashing would take longer than loading: then each file counts by
    its size, its header and 16 blocks of 1 MiB spread evenly over it; a change of training moves every one.
    """
    is_small = sum(path.stat().st_size for path in weights.paths) < FULL_HASH_BYTES
    digest = hashlib.sha256()
    for path in (folder / "config.json", *weights.paths):
        is_whole = is_small or path.suffix == ".json"
        content = sha256_of_file(path) if is_whole else _sampled_sha256(path)
        digest.update(f"{path.name}\n{content}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def _sampled_sha256(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}\n{json.dumps(_header(path), sort_keys=True)}".encode())
    with path.open("rb") as file:
        for block in range(_NUM_SAMPLES):
            file.seek(max(0, (size - _SAMPLE_BYTES) * block // (_NUM_SAMPLES - 1)))
            digest.update(file.read(_SAMPLE_BYTES))
    return f"sampled:{digest.hexdigest()}"


def _header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= _MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            header = json.loads(file.read(length))
        if not isinstance(header, dict):
            raise ValueError("header is no object")
        return header
    except (OSError, ValueError) as error:
        raise ModelError(f"model: expected a safetensors file, found {path} unreadable ({error})") from error
