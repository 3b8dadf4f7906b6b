"""The engine over a 4-bit model: versions in slots, with the numbers of peft on the same packed weights."""

from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from dpo_studio.domain.chat import SamplingParams
from dpo_studio.modeling.adapter_files import read_adapter
from dpo_studio.modeling.adapters import load_lora
from dpo_studio.modeling.base_model import load_base
from dpo_studio.serving.adapter_slots import AdapterSlots, RoutedLinear
from tests.models import make_tiny_adapter, make_tiny_model
from tests.serving.harness import ask, make_rig, reference_answer

SHAPES = {
    "llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16},
    # Its layers are Conv1D before they are packed.
    "gpt2": {"n_embd": 64},
}
IDS = torch.arange(5, 40).unsqueeze(0)


@pytest.fixture(params=SHAPES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model", request.param, **SHAPES[request.param])


def test_slots_give_the_logits_of_peft_row_by_row(folder: Path, tmp_path: Path) -> None:
    adapters = [make_tiny_adapter(tmp_path / f"v{n}", folder, n, rank=4 * n) for n in (1, 2)]
    model = load_base(str(folder), device="cpu", dtype="nf4").model
    slots = AdapterSlots(model, num_slots=3)
    routed = [module for module in model.modules() if isinstance(module, RoutedLinear)]
    assert routed and all(isinstance(module.base, Linear4bit) for module in routed)
    for slot, adapter in enumerate(adapters):
        _, pairs = read_adapter(adapter)
        slots.check(pairs)
        slots.write(slot, pairs)
    with torch.no_grad():
        slots.route([-1, 1, 0], torch.device("cpu"), torch.float32)
        rows = model(IDS.repeat(3, 1)).logits
        plain = load_base(str(folder), device="cpu", dtype="nf4").model(IDS).logits
        second, first = (
            load_lora(load_base(str(folder), device="cpu", dtype="nf4").model, path)(IDS).logits
            for path in reversed(adapters)
        )
    for row, expected in zip(rows, (plain, second, first), strict=True):
        torch.testing.assert_close(row, expected[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(first, second, atol=0.1)


def test_a_version_loaded_while_others_answer_answers_as_peft_does(folder: Path, tmp_path: Path) -> None:
    adapter = make_tiny_adapter(tmp_path / "v1", folder)
    rig = make_rig(folder, dtype="nf4")
    assert (rig.note, rig.base.precision) == ("", "nf4/float32")
    early = ask("dinner with rice", sampling=SamplingParams(temperature=0, max_tokens=20))
    rig.engine.submit(early)
    for _ in range(5):
        rig.engine.step()
    rig.load("v1", adapter)
    late = ask("dinner with rice", version="v1")
    chat = rig.base.chat_format()
    prompt = chat.prompt_ids(late.messages)
    found = [rig.ask(late)[0].token_ids, rig.answers(early)[0].token_ids]
    base = load_base(str(folder), device="cpu", dtype="nf4").model
    plain = reference_answer(base, prompt, 20, chat.eos_ids)
    adapted = reference_answer(load_lora(base, adapter), prompt, 12, chat.eos_ids)
    assert [list(ids) for ids in found] == [adapted, plain]
    assert adapted != plain[:12]
