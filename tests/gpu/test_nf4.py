"""4 bits on a GPU: packed there, slots that answer as peft does, gradients, a round that learns."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit

from dpo_studio.modeling.adapter_files import read_adapter
from dpo_studio.modeling.adapters import load_lora
from dpo_studio.modeling.base_model import BaseModel, load_base
from dpo_studio.serving.adapter_slots import AdapterSlots
from tests.models import make_tiny_adapter, make_tiny_model
from tests.training.rounds import make_round, read_report, rows, worker

IDS = torch.arange(5, 40).unsqueeze(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    return make_tiny_model(tmp_path_factory.mktemp("nf4") / "model", **shape)  # type: ignore[arg-type]


def load(folder: Path, dtype: str = "nf4") -> BaseModel:
    return load_base(str(folder), device="cuda", dtype=dtype)


def alike(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(torch.cosine_similarity(found.flatten().float(), expected.flatten().float(), dim=0))


def test_weights_are_packed_on_the_device(folder: Path) -> None:
    base = load(folder)
    kind = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    assert (base.precision, base.model.get_output_embeddings().weight.dtype) == (f"nf4/{kind}", base.dtype)
    assert base.num_parameters == load(folder, "auto").num_parameters
    assert {p.device.type for p in base.model.parameters()} == {"cuda"}


@torch.no_grad()
def test_slots_give_the_logits_of_peft(folder: Path, tmp_path: Path) -> None:
    adapter = make_tiny_adapter(tmp_path / "v1", folder)
    base, ids = load(folder), IDS.cuda()
    slots = AdapterSlots(base.model, num_slots=2)
    _, pairs = read_adapter(adapter)
    slots.check(pairs)
    slots.write(1, pairs)
    slots.route([-1, 1], base.device, base.dtype)
    plain, adapted = base.model(ids.repeat(2, 1)).logits
    assert alike(plain, load(folder).model(ids).logits[0]) > 0.99
    expected = load_lora(load(folder).model, adapter)(ids).logits[0]
    assert alike(adapted, expected) > 0.99
    assert alike(plain, expected) < 0.9


def test_an_adapters_gradient_is_that_of_the_weights_the_bits_stand_for(folder: Path, tmp_path: Path) -> None:
    adapter = make_tiny_adapter(tmp_path / "v1", folder)
    four_bit, whole = load(folder).model, load(folder, "auto").model
    with torch.no_grad():
        for name, module in four_bit.named_modules():
            if isinstance(module, Linear4bit):
                weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
                whole.get_submodule(name).weight.copy_(weight)
    gradients = []
    for model in (four_bit, whole):
        adapted = load_lora(model, adapter)
        adapted(IDS.cuda()).logits.float().logsumexp(-1).sum().backward()
        found = [p.grad.flatten() for p in adapted.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    assert alike(*gradients) > 0.99


def test_a_round_learns(folder: Path, tmp_path: Path) -> None:
    paths = make_round(tmp_path / "0001", folder, train=rows(8), device="cuda", dtype="nf4")
    with worker(paths) as process:
        process.wait(timeout=120)
    report = read_report(paths)
    assert report.ok, report.reason
    assert report.metrics["loss"] < 0.69
