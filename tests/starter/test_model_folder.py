"""The shipped folder: small, loads with plain transformers, ends its answers, keeps its template."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from dpo_studio import starter
from dpo_studio.starter.tokenizer import CHAT_TEMPLATE

KEY_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(starter.model_dir())
    return loaded


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(starter.model_dir(), dtype=torch.float32)
    return loaded.eval()


def test_key_files_are_there_and_small() -> None:
    folder = starter.model_dir()
    assert all((folder / name).is_file() for name in KEY_FILES)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 20_000_000
    assert (folder.parent / "MODEL_CARD.md").is_file()


def test_greedy_answers_end_by_themselves(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    for prompt in starter.smoke_prompts():
        turns = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=160)[0]
        assert ids[-1] == tokenizer.eos_token_id, prompt
        answer = ids[inputs["input_ids"].shape[1] :]
        assert len(str(tokenizer.decode(answer, skip_special_tokens=True)).split()) >= 2, prompt


def test_template_lowers_the_user_and_keeps_the_rest_verbatim(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [
        {"role": "system", "content": " Be Kind. "},
        {"role": "user", "content": " What NOW?\n"},
        {"role": "assistant", "content": "Well,\n- This\n"},
        {"role": "user", "content": "WHY"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|> Be Kind. <|end|><|user|> what now?\n<|end|><|assistant|>Well,\n- This\n<|end|>"
        "<|user|>why<|end|><|assistant|>"
    )
    assert tokenizer.chat_template == CHAT_TEMPLATE


@pytest.mark.parametrize("text", ["Don't – naïve 日本 🌱", "- A\n- B 12.5", "<tag> \t x", ""])
def test_tokenizer_round_trip(text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_digits_stand_alone_and_control_tokens_are_single(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer.encode("2026", add_special_tokens=False)) == 4
    for token in ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1
    assert tokenizer.eos_token == "<|end|>" and tokenizer.pad_token != tokenizer.eos_token


def test_generation_config_ends_and_pads(tokenizer: PreTrainedTokenizerFast) -> None:
    config = json.loads((starter.model_dir() / "generation_config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert config["pad_token_id"] == tokenizer.pad_token_id


def test_prompts_are_many_and_unique() -> None:
    seeds = starter.seed_prompts()
    assert 180 <= len(seeds) <= 240
    assert len({prompt.lower() for prompt in seeds}) == len(seeds)
    assert len(starter.smoke_prompts()) == 12
    assert len(starter.pinned_prompts()) == 6


def test_the_package_itself_is_free_of_torch() -> None:
    code = "import sys, dpo_studio.starter as s; s.seed_prompts(); print('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "False"
