"""4-bit weights: packed where they should be, worth what they stand for, with gradients, or refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import AutoModelForCausalLM

from dpo_studio.errors import ModelError
from dpo_studio.modeling.adapters import load_lora, new_lora, save_lora
from dpo_studio.modeling.base_model import BaseModel, load_base
from dpo_studio.modeling.nf4 import settle
from tests.models import make_tiny_model

IDS = torch.arange(5, 40).unsqueeze(0)
# Blocks of 64 weights.
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "gemma3_text": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    "phi3": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("nf4") / "model", **SHAPES["llama"])


def load(folder: Path, dtype: str = "nf4") -> BaseModel:
    return load_base(str(folder), device="cpu", dtype=dtype)


def packed(model: Any) -> dict[str, Linear4bit]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def unpacked(folder: Path) -> Any:
    """The same model in float32, with the weights that its 4 bits stand for."""
    four_bit, model = packed(load(folder).model), load(folder, "float32").model
    with torch.no_grad():
        for name, module in four_bit.items():
            model.get_submodule(name).weight.copy_(
                dequantize_4bit(module.weight.data, module.weight.quant_state)
            )
    return model


def perturbed(model: Any) -> Any:
    """With an adapter in which both factors count, the same for every model of a shape."""
    adapted = new_lora(model, rank=4, alpha=8, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapted


def gradients(adapted: Any) -> dict[str, torch.Tensor]:
    adapted(IDS).logits.logsumexp(-1).sum().backward()
    return {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("architecture", SHAPES)
def test_linear_layers_are_packed_and_head_and_embeddings_are_not(architecture: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", architecture, **SHAPES[architecture])
    base, whole = load(folder), load(folder, "float32")
    assert (base.precision, base.dtype, whole.precision) == ("nf4/float32", torch.float32, "float32")
    # In gpt2 they are no nn.Linear before.
    linear = [name for name, module in whole.model.named_modules() if hasattr(module, "weight")]
    left = {"head", "embed_tokens", "wte", "wpe", "norm", "layernorm", "ln_1", "ln_2", "ln_f"}
    expected = {name for name in linear if not any(name.endswith(part) for part in left)}
    assert set(packed(base.model)) == expected
    for module in (base.model.get_output_embeddings(), base.model.get_input_embeddings()):
        assert module.weight.dtype == torch.float32
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())


def test_the_number_of_parameters_is_the_models_and_the_identity_the_files(folder: Path) -> None:
    """Packed tensors have half as many elements, and must not be counted as they lie."""
    base, whole = load(folder), load(folder, "float32")
    assert base.num_parameters == whole.num_parameters
    assert sum(p.numel() for p in base.model.parameters()) < whole.num_parameters
    assert base.model_sha256 == whole.model_sha256


def test_a_forward_is_that_of_the_weights_the_bits_stand_for(folder: Path) -> None:
    with torch.no_grad():
        found, expected = load(folder).model(IDS).logits, unpacked(folder)(IDS).logits
    assert torch.equal(found, expected)


def test_it_is_near_the_model_in_float32_and_not_it(folder: Path) -> None:
    whole = dict(load(folder, "float32").model.named_modules())
    for name, module in packed(load(folder).model).items():
        weight = whole[name].weight
        gap = dequantize_4bit(module.weight.data, module.weight.quant_state) - weight
        # Normal weights in blocks of 64: 9 % is what the 16 levels of NF4 leave.
        assert 0.07 < float(gap.norm() / weight.norm()) < 0.11
    with torch.no_grad():
        found, expected = load(folder).model(IDS).logits, load(folder, "float32").model(IDS).logits
    assert 0.01 < float((found - expected).norm() / expected.norm()) < 0.6


def test_a_forward_without_gradients_leaves_the_gradients_after_it_right(folder: Path) -> None:
    """bitsandbytes 0.50 repacks layers for a CPU with AVX512-BF16 at their first forward without gradients,
    as the reference pass is; their products then had no gradient, and an adapter's was 97 % wrong.
    """
    adapted = perturbed(load(folder).model)
    with torch.no_grad():
        first = adapted(IDS).logits
    found, expected = gradients(adapted), gradients(perturbed(unpacked(folder)))
    assert set(found) == set(expected)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-4)
    assert torch.equal(adapted(IDS).logits, first)


def test_a_step_moves_the_adapter_and_nothing_else(folder: Path) -> None:
    base = load(folder)
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    adapted = perturbed(base.model)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert all("lora_" in name for name in gradients(adapted))
    torch.optim.AdamW(trained, lr=0.1).step()
    after = dict(adapted.unload().named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("architecture", SHAPES)
def test_an_adapter_begins_as_nothing_survives_saving_and_comes_off(
    architecture: str, tmp_path: Path
) -> None:
    folder = make_tiny_model(tmp_path / "model", architecture, **SHAPES[architecture])
    base = load(folder)
    with torch.no_grad():
        plain = base.model(IDS).logits
        fresh = new_lora(base.model, rank=4, alpha=8, seed=1)
        assert torch.equal(fresh(IDS).logits, plain)
        adapted = perturbed(fresh.unload())
        expected = adapted(IDS).logits
        assert not torch.allclose(expected, plain, atol=0.1)
        save_lora(adapted, tmp_path / "saved")
        assert torch.equal(load_lora(load(folder).model, tmp_path / "saved")(IDS).logits, expected)
        assert torch.equal(adapted.unload()(IDS).logits, plain)


def test_an_adapter_means_the_same_on_whole_weights(folder: Path, tmp_path: Path) -> None:
    """Trained over 4 bits and served over the weights that they stand for, and the other way round."""
    with torch.no_grad():
        for name, trained, served in (
            ("packed", load(folder).model, unpacked(folder)),
            ("whole", unpacked(folder), load(folder).model),
        ):
            adapted = perturbed(trained)
            save_lora(adapted, tmp_path / name)
            assert torch.equal(load_lora(served, tmp_path / name)(IDS).logits, adapted(IDS).logits)


def test_without_bitsandbytes_the_sentence_says_how_to_get_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"nf4 needs bitsandbytes.* pip install 'dpo-studio\[nf4\]'"):
        load(folder)
    assert load(folder, "auto").precision == "float32"


def test_an_unknown_dtype_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"dtype: expected auto, nf4 or one of .*, found 'fp4'"):
        load(folder, "fp4")


@pytest.mark.parametrize(("dtype", "is_offered"), [("auto", True), ("nf4", False)])
def test_a_device_that_is_too_small_is_a_reason_for_4_bits(
    dtype: str, is_offered: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fill)
    with pytest.raises(ModelError, match="too little memory; choose a smaller model") as refusal:
        load(folder, dtype)
    assert ("--dtype nf4" in str(refusal.value)) == is_offered


@pytest.mark.parametrize("dtype", ["auto", "nf4"])
@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "bitsandbytes"},
        {"load_in_4bit": True},
        {"load_in_8bit": True},
    ],
)
def test_weights_that_are_packed_on_disk_are_refused(
    dtype: str, said: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """They would train and answer without being told from others.

    transformers reads folders without `quant_method` as bitsandbytes' too, and those were let through.
    """
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = said
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="not quantised yet, found bitsandbytes"):
        load(tmp_path, dtype)


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="expected linear layers that nf4 can pack, found none in /m;"):
        settle(nn.Sequential(nn.Embedding(4, 4)), Path("/m"))
