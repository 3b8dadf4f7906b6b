"""Adapters: made and saved as plain peft, and hostile folders refused before anything is used."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dpo_studio.errors import ModelError
from dpo_studio.modeling.adapter_files import read_adapter
from dpo_studio.modeling.adapters import check_adapter_folder, load_lora, new_lora, save_lora
from tests.models import make_tiny_adapter, make_tiny_model

IDS = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("adapters") / "model")


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    return make_tiny_adapter(tmp_path / "adapter", folder)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "phi3"])
def test_a_new_adapter_changes_nothing_and_survives_saving(architecture: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", architecture)
    adapted = new_lora(load(folder), rank=4, alpha=8, seed=1)
    assert torch.equal(adapted(IDS).logits, load(folder)(IDS).logits)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    save_lora(adapted, tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    again = load_lora(load(folder), tmp_path / "saved")
    assert torch.equal(again(IDS).logits, adapted(IDS).logits)
    assert any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_what_is_saved_is_a_plain_peft_folder(folder: Path, tmp_path: Path) -> None:
    save_lora(new_lora(load(folder), 4, 8, 1), tmp_path / "saved")
    assert PeftModel.from_pretrained(load(folder), tmp_path / "saved").active_adapter == "default"


def test_the_seed_decides_the_adapter(folder: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        adapted = new_lora(load(folder), 4, 8, seed)
        return torch.cat([p.flatten() for name, p in adapted.named_parameters() if "lora_A" in name])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_good_folder_tells_its_config(adapter: Path) -> None:
    config = check_adapter_folder(adapter)
    assert (config.rank, config.alpha, config.use_rslora) == (4, 8, False)
    assert "model.layers.0.mlp.up_proj" in config.target_modules


def test_scaling_is_alpha_over_rank_or_over_its_root(adapter: Path) -> None:
    edit(adapter, use_rslora=True, alpha_pattern={"mlp.up_proj": 32})
    _, pairs = read_adapter(adapter)
    assert pairs["model.layers.0.mlp.up_proj"].scaling == 32 / 2
    assert pairs["model.layers.0.mlp.down_proj"].scaling == 8 / 2


def edit(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def retouch(adapter: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def rename_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def link_weights(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.rename(adapter / "elsewhere")
    os.symlink(adapter / "elsewhere", path)


def truncate(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def put_nan(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = float("nan")


def put_infinity(tensors: dict[str, torch.Tensor]) -> None:
    next(iter(tensors.values()))[0, 0] = float("inf")


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    name = next(iter(tensors))
    tensors[name] = tensors[name][:2].clone()


def drop_a_side(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[next(iter(tensors))]


def add_a_stranger(tensors: dict[str, torch.Tensor]) -> None:
    tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no safetensors": (rename_weights, "regular file adapter_model.safetensors"),
    "symlink": (link_weights, "regular file adapter_model.safetensors"),
    "no config": (lambda d: (d / "adapter_config.json").unlink(), "regular file adapter_config.json"),
    "truncated": (truncate, "expected a whole safetensors file"),
    "NaN": (lambda d: retouch(d, put_nan), "expected finite numbers"),
    "infinity": (lambda d: retouch(d, put_infinity), "expected finite numbers"),
    "shape": (lambda d: retouch(d, reshape), "expected factors of rank 4"),
    "half a pair": (lambda d: retouch(d, drop_a_side), "expected both lora_A and lora_B"),
    "stranger": (lambda d: retouch(d, add_a_stranger), "expected lora_A and lora_B tensors"),
    "not JSON": (lambda d: (d / "adapter_config.json").write_text("{"), "expected a JSON config"),
    "list": (lambda d: (d / "adapter_config.json").write_text("[]"), "expected an object"),
    "deep": (lambda d: (d / "adapter_config.json").write_text("[" * 100_000), "expected a JSON config"),
    "auto_mapping": (
        lambda d: edit(d, auto_mapping={"parent_library": "tripwire", "base_model_class": "X"}),
        "plain LoRA adapter, found auto_mapping",
    ),
    "unknown key": (lambda d: edit(d, runs_code="yes"), "expected only known keys .* found 'runs_code'"),
    "dora": (lambda d: edit(d, use_dora=True), "plain LoRA adapter, found use_dora"),
    "bias": (lambda d: edit(d, bias="all"), "plain LoRA adapter, found bias"),
    "saved modules": (lambda d: edit(d, modules_to_save=["lm_head"]), "found modules_to_save"),
    "kind": (lambda d: edit(d, peft_type="IA3"), "expected peft_type LORA"),
    "rank": (lambda d: edit(d, r=100_000), "expected r above 0 and at most 512"),
    "rank lies": (lambda d: edit(d, r=8), "expected factors of rank 8"),
    "alpha": (lambda d: edit(d, lora_alpha="8"), "expected lora_alpha"),
    "pattern": (lambda d: edit(d, alpha_pattern={"(a+)+$": 2}), "expected module names in alpha_pattern"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_folder_is_refused_in_a_sentence(name: str, adapter: Path) -> None:
    check_adapter_folder(adapter)
    spoil, words = HOSTILE[name]
    spoil(adapter)
    with pytest.raises(ModelError, match=words):
        check_adapter_folder(adapter)


def test_an_adapter_for_other_weights_is_refused_by_its_manifest(adapter: Path) -> None:
    (adapter / "MANIFEST.json").write_text(json.dumps({"model_sha256": "sha256:aaa"}))
    check_adapter_folder(adapter, model_sha256="sha256:aaa")
    with pytest.raises(ModelError, match="expected one trained on the loaded base weights"):
        check_adapter_folder(adapter, model_sha256="sha256:bbb")
