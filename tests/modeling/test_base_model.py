"""Loading base models: every supported shape, chosen dtypes, and refusals in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpo_studio.errors import ModelError
from dpo_studio.modeling.base_model import load_base
from tests.models import ARCHITECTURES, make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "model")


def copy_of(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "starter"])
def test_every_shape_loads_frozen_on_the_cpu(architecture: str, tmp_path: Path) -> None:
    base = load_base(str(make_tiny_model(tmp_path / "model", architecture)), device="cpu")
    assert (base.device.type, base.dtype, base.context_length) == ("cpu", torch.float32, 256)
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.num_parameters == sum(parameter.numel() for parameter in base.model.parameters())


def test_progress_rises_to_loaded(folder: Path) -> None:
    seen: list[float] = []
    load_base(str(folder), device="cpu", on_progress=lambda fraction, _: seen.append(fraction))
    assert seen == sorted(seen) and seen[-1] == 0.9


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_small_half_precision_files_become_float32_on_the_cpu_unless_told(
    dtype: str, expected: torch.dtype, folder: Path, tmp_path: Path
) -> None:
    copied = copy_of(folder, tmp_path / "half")
    weights = {name: tensor.half() for name, tensor in load_file(copied / "model.safetensors").items()}
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    assert load_base(str(copied), device="cpu", dtype=dtype).dtype == expected


def test_the_identity_follows_the_weights_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    first = load_base(str(folder), device="cpu")
    copied = copy_of(folder, tmp_path / "copy")
    second = load_base(str(copied), device="cpu", dtype="bfloat16")
    assert (first.model_sha256, first.tokenizer_sha256) == (second.model_sha256, second.tokenizer_sha256)
    weights = load_file(copied / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    third = load_base(str(copied), device="cpu")
    assert third.model_sha256 != first.model_sha256
    assert third.tokenizer_sha256 == first.tokenizer_sha256


def test_another_template_is_another_tokenizer_identity(folder: Path, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}<|eot_id|>{% endfor %}"
    (tmp_path / "chat.jinja").write_text(template)
    by_text = load_base(str(folder), device="cpu", chat_template=template)
    by_file = load_base(str(folder), device="cpu", chat_template=str(tmp_path / "chat.jinja"))
    assert by_text.tokenizer_sha256 == by_file.tokenizer_sha256
    assert by_text.tokenizer_sha256 != load_base(str(folder), device="cpu").tokenizer_sha256


def test_the_generation_config_may_name_more_ends(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path / "copy")
    config = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": [3, 77]}))
    assert load_base(str(copied), device="cpu").chat_format().eos_ids == {3, 77}


def test_a_rope_that_rescales_is_limited_to_its_first_length(tmp_path: Path) -> None:
    rope = {
        "rope_type": "dynamic",
        "factor": 4.0,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
    }
    folder = make_tiny_model(tmp_path / "model", "llama", rope_parameters=rope)
    assert load_base(str(folder), device="cpu").context_length == 64


def test_a_tokenizer_without_a_template_names_the_flag(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path / "copy")
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"expected a chat template.*--chat-template FILE"):
        load_base(str(copied), device="cpu")


def test_missing_weights_are_refused_and_not_made_up(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path / "copy")
    weights = load_file(copied / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing or of another shape, model\.layers\.1\.mlp\.up_proj"):
        load_base(str(copied), device="cpu")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "config.json").unlink(), "expected a folder with config.json"),
        (lambda d: (d / "config.json").write_text("{"), "expected one that transformers can"),
        (
            lambda d: (d / "config.json").write_text('{"model_type": "zzz"}'),
            "expected one that transformers can",
        ),
        (lambda d: (d / "model.safetensors").write_bytes(b"\x08"), "expected a safetensors file"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), r"expected \*\.safetensors"),
        (lambda d: (d / "tokenizer.json").write_text("{}"), "tokenizer: expected one that transformers can"),
    ],
)
def test_a_broken_folder_is_refused_in_a_sentence(
    spoil: object, words: str, folder: Path, tmp_path: Path
) -> None:
    copied = copy_of(folder, tmp_path / "copy")
    spoil(copied)  # type: ignore[operator]
    with pytest.raises(ModelError, match=words) as caught:
        load_base(str(copied), device="cpu")
    assert "\n" not in str(caught.value)


def test_code_that_comes_with_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    copied = copy_of(folder, tmp_path / "copy")
    config = json.loads((copied / "config.json").read_text())
    config |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.M"},
    }
    (copied / "config.json").write_text(json.dumps(config))
    (copied / "evil.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: ...\nclass M: ...\n"
    )
    with pytest.raises(ModelError):
        load_base(str(copied), device="cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("source", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_path_that_is_not_there_is_not_looked_up_on_the_hub(source: str) -> None:
    with pytest.raises(ModelError, match="found nothing at"):
        load_base(source, device="cpu")


def test_a_hub_id_that_cannot_be_fetched_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"found 'nobody/nothing', which is no folder here.*check the name"):
        load_base("nobody/nothing", device="cpu")


@pytest.mark.parametrize(("option", "value"), [("device", "gpu7"), ("device", "cuda:99"), ("dtype", "int8")])
def test_unknown_devices_and_dtypes_are_refused(option: str, value: str, folder: Path) -> None:
    device, dtype = (value, "auto") if option == "device" else ("cpu", value)
    with pytest.raises(ModelError, match=f"{option}: expected auto"):
        load_base(str(folder), device=device, dtype=dtype)
