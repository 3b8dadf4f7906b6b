"""adapter_config.json, read as if written by an enemy: the one allow-list of what a LoRA config may say.

Keys with a meaning are checked, keys of other features must hold their neutral value, unknown keys are
refused (PEFT would import a module named in `auto_mapping`, and runs patterns as regular expressions).
Tensors are checked by whoever reads them.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_studio.errors import ModelError

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
TENSOR_NAME = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?P<side>[AB])\.weight")
MAX_RANK = 512
_MAX_CONFIG_BYTES = 1_000_000
_MODULE = re.compile(r"[\w.-]+")
_USED = frozenset(
    (
        *("peft_type", "r", "lora_alpha", "target_modules", "use_rslora", "rank_pattern", "alpha_pattern"),
        "fan_in_fan_out",
    )
)
_FREE = frozenset(
    (
        *("base_model_name_or_path", "revision", "task_type", "inference_mode", "lora_dropout"),
        *("peft_version", "init_lora_weights", "exclude_modules", "megatron_core", "qalora_group_size"),
        "ensure_weight_tying",
    )
)
"""Words about how it was trained; they change nothing when it is served."""
_NEUTRAL = frozenset(
    (
        *("auto_mapping", "modules_to_save", "bias", "lora_bias", "use_dora", "use_qalora", "use_bdlora"),
        *("target_parameters", "layer_replication", "layers_pattern", "layers_to_transform"),
        *("trainable_token_indices", "alora_invocation_tokens", "arrow_config", "corda_config", "eva_config"),
        *("kasa_config", "loftq_config", "lora_ga_config", "megatron_config", "monteclora_config"),
        "velora_config",
    )
)
"""Features that would change the arithmetic or the code that runs; only "off" is read."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The part of adapter_config.json that decides the arithmetic."""

    rank: int
    alpha: float
    use_rslora: bool
    target_modules: tuple[str, ...]
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    @property
    def ranks(self) -> frozenset[int]:
        """The ranks that tensors may have."""
        return frozenset((self.rank, *self.rank_pattern.values()))

    def scaling(self, module: str, rank: int) -> float:
        """Factor of B·A for one module, as peft computes it."""
        alpha = next(
            (a for key, a in self.alpha_pattern.items() if re.match(rf"(.*\.)?({key})$", module)), self.alpha
        )
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The checked config of an adapter folder. Raises ModelError with one sentence."""
    return parse_adapter_config(_read(folder / CONFIG_FILE))


def parse_adapter_config(value: Mapping[str, Any]) -> AdapterConfig:
    """Check a config's keys and values. Raises ModelError with one sentence."""
    if unknown := sorted(set(value) - _USED - _FREE - _NEUTRAL):
        raise ModelError(f"adapter: expected only known keys in {CONFIG_FILE}, found {unknown[0][:80]!r}")
    for key in sorted(_NEUTRAL & set(value)):
        if value[key] and (key, value[key]) != ("bias", "none"):
            raise ModelError(f"adapter: expected a plain LoRA adapter, found {key}={str(value[key])[:80]!r}")
    for key in sorted(_FREE & set(value)):
        if isinstance(value[key], dict):
            raise ModelError(f"adapter: expected a plain value for {key}, found an object")
    if value.get("peft_type") != "LORA":
        raise ModelError(f"adapter: expected peft_type LORA, found {str(value.get('peft_type'))[:80]!r}")
    targets = value.get("target_modules") or []
    return AdapterConfig(
        rank=_number("r", value.get("r"), MAX_RANK, int),
        alpha=_number("lora_alpha", value.get("lora_alpha"), 1e6, (int, float)),
        use_rslora=bool(value.get("use_rslora")),
        target_modules=tuple(
            _module("target_modules", name) for name in (targets if isinstance(targets, list) else [targets])
        ),
        rank_pattern=_numbers("rank_pattern", value.get("rank_pattern"), MAX_RANK, int),
        alpha_pattern=_numbers("alpha_pattern", value.get("alpha_pattern"), 1e6, (int, float)),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError("larger than 1 MB")
        config = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"adapter: expected a JSON config, found {path} unreadable ({error})") from error
    if not isinstance(config, dict):
        raise ModelError(f"adapter: expected an object in {path}, found {type(config).__name__}")
    return config


def _module(key: str, name: Any) -> str:
    # A pattern is a regular expression to PEFT; only plain names are taken from a file.
    if not isinstance(name, str) or not _MODULE.fullmatch(name):
        raise ModelError(f"adapter: expected module names in {key}, found {str(name)[:80]!r}")
    return name


def _number(name: str, value: Any, most: float, kind: type | tuple[type, ...]) -> Any:
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number or not 0 < value <= most:
        raise ModelError(f"adapter: expected {name} above 0 and at most {most:g}, found {str(value)[:80]!r}")
    return value


def _numbers(name: str, value: Any, most: float, kind: type | tuple[type, ...]) -> dict[str, Any]:
    found = value or {}
    if not isinstance(found, dict):
        raise ModelError(f"adapter: expected an object for {name}, found {type(found).__name__}")
    return {_module(name, key): _number(f"{name}.{key}", item, most, kind) for key, item in found.items()}
