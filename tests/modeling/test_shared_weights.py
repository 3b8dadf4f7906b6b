"""On the CPU, weights loaded in the type of their file are its own pages, one copy for all processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from dpo_studio.modeling.base_model import BaseModel, load_base
from tests.models import make_tiny_model


def mapped(folder: Path) -> Iterator[range]:
    """Addresses at which files of this folder are mapped into this process."""
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        if line.endswith("/model.safetensors") and str(folder) in line:
            start, end = line.split()[0].split("-")
            yield range(int(start, 16), int(end, 16))


def num_mapped(base: BaseModel, folder: Path) -> int:
    ranges = list(mapped(folder))
    return sum(any(p.data_ptr() in place for place in ranges) for p in base.model.parameters())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "model")


def test_weights_in_the_type_of_their_file_are_the_mapped_file(folder: Path) -> None:
    base = load_base(str(folder), device="cpu", dtype="float32")
    assert num_mapped(base, folder) == len(list(base.model.parameters()))


def test_converted_weights_are_copies(folder: Path) -> None:
    """The control: another type cannot be mapped."""
    base = load_base(str(folder), device="cpu", dtype="bfloat16")
    assert num_mapped(base, folder) == 0


def test_a_mapped_model_answers_as_one_in_memory(folder: Path) -> None:
    base = load_base(str(folder), device="cpu", dtype="float32")
    copied = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    copied.load_state_dict({name: tensor.clone() for name, tensor in base.model.state_dict().items()})
    ids = base.tokenizer("hello there", return_tensors="pt").input_ids
    assert base.model(ids).logits.equal(copied.eval()(ids).logits)
