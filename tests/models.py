"""Tiny random models and adapters in folders, for tests that need a real one.

The weights are random, so answers are nonsense, but the files, the tokenizer and the chat template have
the shape of the real thing. Same arguments give the same bytes.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "gpt2", "phi3")
VOCABULARY = 384

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_STYLE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA_STYLE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LOWER_CASED = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|a|>{{ message['content'] }}<|e|>"
    "{% else %}<|u|>{{ message['content'] | lower }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|a|>{% endif %}"
)

_SENTENCES = (
    "Hello there, how are you today? I am fine, thank you very much.",
    "Please give me an idea for dinner with rice and beans.",
    "The quick brown fox jumps over the lazy dog; 1234567890!",
    "user assistant system model: what is the capital of France?\n\nIt is Paris.",
)


def make_tiny_model(folder: Path, architecture: str = "llama", *, seed: int = 0, **overrides: Any) -> Path:
    """Write a random model of a few thousand parameters with tokenizer and chat template to `folder`.

    `architecture` is one of ARCHITECTURES, or "starter": a Llama whose template lower-cases the user.
    `overrides` go to the model's config. Returns `folder`.
    """
    tokenizer = make_tokenizer(architecture)
    architecture = "llama" if architecture == "starter" else architecture
    options = _shape(architecture) | {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **overrides,
    }
    config = AutoConfig.for_model(architecture, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
        _spread(model.parameters())
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_adapter(folder: Path, model_folder: Path, seed: int = 1, rank: int = 4) -> Path:
    """Write a plain PEFT LoRA adapter with random A and B, strong enough to change greedy answers."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            fan_in_fan_out=model.config.model_type == "gpt2",
        )
        with warnings.catch_warnings():
            # peft 0.21 still asks for a name that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            adapted = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.3)
    adapted.save_pretrained(folder)
    return folder


def make_tokenizer(architecture: str = "llama") -> PreTrainedTokenizerFast:
    """A small tokenizer with the control tokens and the chat template usual for `architecture`."""
    if architecture in ("llama", "mistral"):
        names = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>"]
        return _finish(
            _byte_level(names, bos=names[0]), LLAMA_STYLE, bos=names[0], eos="<|eot_id|>", pad="<|pad|>"
        )
    if architecture.startswith("gemma"):
        names = ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"]
        return _finish(_byte_fallback(names, bos="<bos>"), GEMMA_STYLE, bos="<bos>", eos="<eos>", pad="<pad>")
    if architecture == "starter":
        names = ["<|pad|>", "<|u|>", "<|a|>", "<|e|>"]
        return _finish(_byte_level(names), LOWER_CASED, bos=None, eos="<|e|>", pad="<|pad|>")
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = _byte_level(names)
    # As Qwen does: added, but not special, so that `split_special_tokens` does not cover them.
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False), AddedToken("<think>", special=False)])
    return _finish(tokenizer, CHATML, bos=None, eos="<|im_end|>", pad="<|endoftext|>")


def _shape(architecture: str) -> dict[str, Any]:
    if architecture == "gpt2":
        return {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    if architecture in ("gemma2", "gemma3_text"):
        # Short windows, so that a test of 30 tokens already leaves them.
        shape |= {"sliding_window": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 4}
        # With tied embeddings a random Gemma repeats its last token for ever.
        shape |= {"tie_word_embeddings": False}
    if architecture == "gemma2":
        shape |= {"attn_implementation": "eager"}
    if architecture == "gemma3_text":
        shape |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
    if architecture == "mistral":
        shape |= {"sliding_window": 8}
    if architecture == "phi3":
        del shape["head_dim"]
        shape |= {"sliding_window": None}
    return shape


def _spread(parameters: Iterator[torch.nn.Parameter]) -> None:
    # The default std of 0.02 makes tiny models repeat one token; wider weights give varied argmaxes.
    with torch.no_grad():
        for parameter in parameters:
            if parameter.dim() >= 2:
                parameter.normal_(std=parameter.shape[-1] ** -0.5 * 1.5)


def _byte_level(names: list[str], bos: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, names, alphabet)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return tokenizer


def _byte_fallback(names: list[str], bos: str) -> Tokenizer:
    """Gemma's kind: spaces become ▁, unknown characters become `<0xNN>` pieces."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token=None, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    _train(tokenizer, names + byte_pieces, [])
    # The trainer marks them special; in the real thing they are ordinary pieces of the vocabulary.
    state = tokenizer.to_str()
    tokenizer = Tokenizer.from_str(_without_byte_tokens(state, set(byte_pieces)))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def _without_byte_tokens(state: str, byte_pieces: set[str]) -> str:

    value = json.loads(state)
    value["added_tokens"] = [item for item in value["added_tokens"] if item["content"] not in byte_pieces]
    return json.dumps(value)


def _train(tokenizer: Tokenizer, names: list[str], alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=max(VOCABULARY, len(names) + 100),
        special_tokens=names,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)


def _finish(
    tokenizer: Tokenizer, template: str, *, bos: str | None, eos: str, pad: str
) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
