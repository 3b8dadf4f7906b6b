"""Every supported shape of model: batched answers equal those of transformers' own generate."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from dpo_studio.domain.chat import SamplingParams
from dpo_studio.modeling.adapters import load_lora
from tests.models import ARCHITECTURES, make_tiny_adapter, make_tiny_model
from tests.serving.harness import Rig, ask, make_rig, reference_answer

PROMPTS = (
    "Hello there, how are you today?",
    "dinner",
    "Please give me an idea for dinner with rice and beans and a very long list of other things.",
)
SAMPLING = SamplingParams(temperature=0, max_tokens=24)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_of_prompts_gets_the_tokens_of_generate(architecture: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", architecture)
    rig = make_rig(folder, prefill_chunk=11)
    assert rig.note == "", "the batched runner must be in use"
    assert_batch_is_right(rig, folder)


HYBRID = {
    "layer_types": ["conv", "full_attention"],
    "block_ff_dim": 64,
    "block_auto_adjust_ff_dim": False,
}


@pytest.mark.parametrize(
    ("architecture", "options", "reason"),
    [
        ("lfm2", HYBRID, "attention cannot be batched"),
        # It reads positions off the mask (ALiBi), which only the comparison with its own answer shows.
        ("bloom", {"n_layer": 2, "n_head": 4}, "answers differently when batched"),
        # Makes no key-value cache at all: every token reads the whole text again.
        ("mamba", {"state_size": 8}, "attention cannot be batched"),
    ],
)
def test_a_model_that_cannot_be_batched_is_served_one_by_one_and_says_so(
    architecture: str, options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = make_tiny_model(tmp_path / "model", architecture, **options)
    rig = make_rig(folder, prefill_chunk=11)
    assert reason in rig.note and "one after another" in rig.note
    assert_batch_is_right(rig, folder)


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "phi3"])
def test_a_version_answers_as_peft_merged_into_the_base(architecture: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "model", architecture)
    adapter = make_tiny_adapter(tmp_path / "adapter", folder, rank=12)
    rig = make_rig(folder)
    rig.load("v1", adapter)
    requests = [ask(prompt, sampling=SAMPLING, version="v1") for prompt in PROMPTS]
    mixed = [ask(prompt, sampling=SAMPLING) for prompt in PROMPTS]
    for request in (*requests, *mixed):
        rig.engine.submit(request)
    rig.run()
    merged = load_lora(AutoModelForCausalLM.from_pretrained(folder), adapter).merge_and_unload()
    chat = rig.base.chat_format()
    for request, plain in zip(requests, mixed, strict=True):
        expected = reference_answer(merged, chat.prompt_ids(request.messages), 24, chat.eos_ids)
        assert list(rig.answers(request)[0].token_ids) == expected
        assert rig.answers(plain)[0].token_ids != rig.answers(request)[0].token_ids


def assert_batch_is_right(rig: Rig, folder: Path) -> None:
    requests = [ask(prompt, sampling=SAMPLING, n=n) for n, prompt in enumerate(PROMPTS, 1)]
    for request in requests:
        rig.engine.submit(request)
    rig.run()
    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = rig.base.chat_format()
    for request in requests:
        expected = reference_answer(model, chat.prompt_ids(request.messages), 24, chat.eos_ids)
        for answer in rig.answers(request):
            assert list(answer.token_ids) == expected
