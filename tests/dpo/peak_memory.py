"""Run as a program: what a training step really takes, and what was estimated. Writes JSON.

`python -m tests.dpo.peak_memory MODEL TOKENS RECOMPUTE`: MODEL is a folder or "32k" for a random Llama.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.dpo.layouts import PREFIX_SHARED
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.memory_estimate import estimate_memory
from dpo_studio.dpo.trainer import Trainer
from dpo_studio.modeling.adapters import new_lora


def main() -> None:
    name, tokens, is_recomputing = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "1"
    torch.set_num_threads(1)
    model = new_lora(load(name).requires_grad_(False).eval(), 16, 32, 0)
    # One small step warms up what is allocated once, and its estimate is thrown away.
    step(model, 64, is_recomputing=False)
    estimate = estimate_memory(model)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    step(model, tokens, is_recomputing=is_recomputing)
    took = status("VmHWM") - before
    found = {"took": took, "estimate": estimate.total(tokens, is_recomputing=is_recomputing)}
    sys.stdout.write(json.dumps(found) + "\n")


def load(name: str) -> Any:
    if name != "32k":
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32_000,
            hidden_size=384,
            intermediate_size=1024,
            num_hidden_layers=8,
            num_attention_heads=6,
            num_key_value_heads=2,
        )
    )


def step(model: Any, tokens: int, *, is_recomputing: bool) -> None:
    """One optimiser step in one micro-batch of about `tokens` tokens."""
    ids = torch.randint(5, 4000, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    pair = TokenPair(tuple(ids[:32]), tuple(ids[32:48]), tuple(ids[48:]))
    pairs = [pair] * (tokens // 64)
    reference = torch.zeros(len(pairs), 2, dtype=torch.float64)
    budget = MemoryBudget(tokens)
    budget.is_recomputing = is_recomputing
    settings = TrainSettings(epochs=1, batch_size=len(pairs))
    scorer = ResponseScorer(model)
    list(Trainer(scorer, pairs, reference, settings, layout=PREFIX_SHARED, budget=budget).steps())


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found) * 1024


if __name__ == "__main__":
    main()
