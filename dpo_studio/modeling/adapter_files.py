"""Adapter folders, read as if written by an enemy.

The config is allow-listed (`dpo_studio.domain.adapter`), tensors are read with safetensors only, every one
is checked: name, shape, finite. No peft here, so the engine starts faster.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from dpo_studio.domain.adapter import (
    CONFIG_FILE,
    TENSOR_NAME,
    WEIGHTS_FILE,
    AdapterConfig,
    read_adapter_config,
)
from dpo_studio.errors import ModelError
from dpo_studio.paths import VERSION_MANIFEST


@dataclass(frozen=True, slots=True)
class LoraPair:
    """The two factors of one linear layer: its output changes by scaling · B A x."""

    a: torch.Tensor
    """(rank, in_features)"""
    b: torch.Tensor
    """(out_features, rank)"""
    scaling: float


def check_adapter_folder(folder: Path, *, model_sha256: str | None = None) -> AdapterConfig:
    """Refuse a folder that is not a plain, whole, finite LoRA adapter; return its config.

    `model_sha256`: refuse when a manifest beside it names other base weights. Raises ModelError.
    """
    config, _ = read_adapter(folder, model_sha256=model_sha256)
    return config


def read_adapter(
    folder: Path, *, model_sha256: str | None = None
) -> tuple[AdapterConfig, dict[str, LoraPair]]:
    """Config and checked tensors by module name. Raises ModelError with one sentence."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise ModelError(f"adapter: expected a regular file {name}, found none in {folder}")
    _check_base(folder / VERSION_MANIFEST, model_sha256)
    config = read_adapter_config(folder)
    return config, _read_pairs(folder / WEIGHTS_FILE, config)


def _check_base(manifest: Path, model_sha256: str | None) -> None:
    if model_sha256 is None or not manifest.is_file():
        return
    try:
        found = json.loads(manifest.read_bytes()).get("model_sha256")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"adapter: expected a JSON manifest, found {manifest} unreadable") from error
    if found != model_sha256:
        raise ModelError(
            f"adapter: expected one trained on the loaded base weights ({model_sha256[:19]}…), found one for "
            f"{str(found)[:19]}… in {manifest.parent}; serve the model that it was trained on"
        )


def _read_pairs(path: Path, config: AdapterConfig) -> dict[str, LoraPair]:
    sides: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
                match = TENSOR_NAME.fullmatch(name)
                if match is None:
                    raise ModelError(f"adapter: expected lora_A and lora_B tensors, found {name[:120]!r}")
                sides.setdefault(match["module"], {})[match["side"]] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"adapter: expected a whole safetensors file, found {path} ({error})") from error
    if not sides:
        raise ModelError(f"adapter: expected LoRA tensors, found none in {path}")
    return {module: _checked_pair(module, found, config) for module, found in sorted(sides.items())}


def _checked_pair(module: str, found: dict[str, torch.Tensor], config: AdapterConfig) -> LoraPair:
    if set(found) != {"A", "B"}:
        raise ModelError(f"adapter: expected both lora_A and lora_B of {module}, found {sorted(found)}")
    a, b = found["A"], found["B"]
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or a.shape[0] not in config.ranks:
        raise ModelError(
            f"adapter: expected factors of rank {config.rank} for {module}, found shapes {tuple(a.shape)} "
            f"and {tuple(b.shape)}"
        )
    for side in (a, b):
        if not side.is_floating_point() or not bool(side.isfinite().all()):
            raise ModelError(f"adapter: expected finite numbers in {module}, found NaN, infinity or integers")
    return LoraPair(a, b, config.scaling(module, a.shape[0]))
