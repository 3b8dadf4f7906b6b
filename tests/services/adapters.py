"""A valid, tiny PEFT adapter folder made without torch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "fake",
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "bias": "none",
    "target_modules": ["q_proj"],
    "inference_mode": True,
}


def write_adapter(folder: Path) -> None:
    """One LoRA pair on one projection."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{prefix}.lora_A.weight": np.ones((2, 8), dtype=np.float32),
        f"{prefix}.lora_B.weight": np.zeros((8, 2), dtype=np.float32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
