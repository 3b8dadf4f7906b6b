"""Is this folder a plain, finite LoRA adapter? Asked without torch and without importing anything it names.

Only two files may be there, both regular. Tensors are read by safetensors only; each must be a finite LoRA
factor of the configured rank.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from dpo_studio.domain.adapter import CONFIG_FILE, TENSOR_NAME, WEIGHTS_FILE, read_adapter_config
from dpo_studio.errors import ModelError

ADAPTER_FILES = frozenset({CONFIG_FILE, WEIGHTS_FILE})
_FLOATS: Mapping[str, tuple[Any, int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
"""Bits of the exponent by dtype: all of them set means infinity or NaN. numpy itself has no bfloat16."""


def check_adapter(folder: Path, *, beside: frozenset[str] = frozenset()) -> None:
    """Raise ModelError unless `folder` holds exactly an adapter, and the files named in `beside`."""
    check_names(folder, ADAPTER_FILES | beside)
    _check_tensors(folder / WEIGHTS_FILE, read_adapter_config(folder).ranks)


def check_names(folder: Path, expected: frozenset[str]) -> None:
    """Raise ModelError unless `folder` is a real folder of exactly these regular files."""
    if folder.is_symlink() or not folder.is_dir():
        raise ModelError(f"adapter: expected a folder, found none at {folder}")
    found = {path.name for path in folder.iterdir()}
    if extra := sorted(found - expected):
        raise ModelError(f"adapter: expected only {sorted(expected)} in {folder}, found {extra[0][:80]!r}")
    if missing := sorted(expected - found):
        raise ModelError(f"adapter: expected {missing[0]} in {folder}, found none")
    for name in sorted(expected):
        if not stat.S_ISREG((folder / name).lstat().st_mode):
            raise ModelError(f"adapter: expected a regular file, found a link or folder at {folder / name}")


def _check_tensors(path: Path, ranks: frozenset[int]) -> None:
    try:
        tensors = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"adapter: expected a whole safetensors file, found {path} ({error})") from error
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, tensor in tensors:
        match = TENSOR_NAME.fullmatch(name)
        if match is None:
            raise ModelError(f"adapter: expected lora_A and lora_B tensors, found {name[:120]!r}")
        _check_finite(name, tensor)
        shapes.setdefault(match["module"], {})[match["side"]] = tuple(tensor["shape"])
    if not shapes:
        raise ModelError(f"adapter: expected LoRA tensors, found none in {path}")
    for module, sides in sorted(shapes.items()):
        _check_factors(module, sides, ranks)


def _check_finite(name: str, tensor: Mapping[str, Any]) -> None:
    if tensor["dtype"] not in _FLOATS:
        raise ModelError(f"adapter: expected floating point numbers in {name}, found {tensor['dtype']}")
    kind, exponent = _FLOATS[tensor["dtype"]]
    bits = np.frombuffer(tensor["data"], dtype=kind)
    if bool(((bits & kind(exponent)) == kind(exponent)).any()):
        raise ModelError(f"adapter: expected finite numbers in {name}, found NaN or infinity")


def _check_factors(module: str, sides: Mapping[str, tuple[int, ...]], ranks: frozenset[int]) -> None:
    if set(sides) != {"A", "B"}:
        raise ModelError(f"adapter: expected both lora_A and lora_B of {module}, found {sorted(sides)}")
    a, b = sides["A"], sides["B"]
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] not in ranks:
        raise ModelError(f"adapter: expected factors of rank {sorted(ranks)} for {module}, found {a} and {b}")
