"""Tiny models in memory, for tests of scoring and training."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from dpo_studio.dpo.batches import TokenPair
from tests.models import make_tiny_model

CPU = torch.device("cpu")


def load_tiny(folder: Path, architecture: str = "llama", **overrides: Any) -> Any:
    """A random model with frozen weights, in eval mode."""
    model = AutoModelForCausalLM.from_pretrained(make_tiny_model(folder, architecture, **overrides))
    return model.requires_grad_(False).eval()


def with_lora(model: Any, *, seed: int = 0, dropout: float = 0.0, is_perturbed: bool = False) -> Any:
    """Wrap a model with an adapter; a perturbed one already changes the model."""
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        lora_dropout=dropout,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks for a name that transformers 5.23 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
        if is_perturbed:
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.1)
    return adapted


def random_pairs(lengths: list[tuple[int, int, int]], seed: int = 0) -> list[TokenPair]:
    """Pairs with the given numbers of prompt, chosen and rejected tokens."""
    return random_rankings(lengths, seed)


def random_rankings(lengths: Sequence[Sequence[int]], seed: int = 0) -> list[TokenPair]:
    """Rankings with the given numbers of tokens: of the prompt, then of every response."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for counts in lengths:
        prompt, best, *between, worst = (
            tuple(torch.randint(5, 300, (count,), generator=generator).tolist()) for count in counts
        )
        found.append(TokenPair(prompt, best, worst, between=tuple(between)))
    return found


def adapter_state(model: Any) -> dict[str, torch.Tensor]:
    """Copies of what trains."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
