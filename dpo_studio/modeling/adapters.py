"""LoRA adapters for training: made, loaded and saved with peft.

What is written is a plain PEFT folder of two files, readable by `PeftModel.from_pretrained`. What is read
goes through `check_adapter_folder` first.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save
from transformers.pytorch_utils import Conv1D

from dpo_studio.domain.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig
from dpo_studio.files import write_bytes, write_json
from dpo_studio.modeling.adapter_files import check_adapter_folder

__all__ = ["AdapterConfig", "check_adapter_folder", "load_lora", "new_lora", "save_lora"]


def new_lora(model: Any, rank: int, alpha: float, seed: int) -> PeftModel:
    """Wrap `model` (its linear layers are replaced in place) with a fresh adapter that changes nothing yet.

    All linear layers but the output head are adapted. The same seed gives the same adapter.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    with torch.random.fork_rng(), _quiet_peft():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def load_lora(model: Any, folder: Path) -> PeftModel:
    """Wrap `model` with a saved adapter, ready to be trained further. Raises ModelError."""
    check_adapter_folder(folder)
    with _quiet_peft():
        return PeftModel.from_pretrained(model, folder, is_trainable=True)


def save_lora(peft_model: PeftModel, folder: Path) -> None:
    """Write the adapter as a plain PEFT folder: two files, each whole or absent."""
    tensors = get_peft_model_state_dict(peft_model)
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    config = peft_model.peft_config[peft_model.active_adapter].to_dict()
    config |= {"inference_mode": True, "target_modules": sorted(config["target_modules"])}
    write_bytes(folder / WEIGHTS_FILE, save(cpu, metadata={"format": "pt"}))
    write_json(folder / CONFIG_FILE, _plain(config))


def _plain(value: Any) -> Any:
    """JSON value of a peft config: sets sorted, enums by value."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(item) for item in value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    with warnings.catch_warnings():
        # peft 0.21 still asks for a name that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
