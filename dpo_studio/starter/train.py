"""Make the starter model again: `python -m dpo_studio.starter.train`.

Corpus, tokenizer and training in one command, from one seed, resumable: a stopped run goes on where its last
checkpoint stands. The schedule is by wall clock: full speed, then a linear decay to zero over the last part
of the budget, so that a run fits the time there is. The same seed gives the same corpus and tokenizer; the
weights depend on how many steps fit into the time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from dpo_studio.starter import model_dir
from dpo_studio.starter.batches import Batch, Encoder, batches
from dpo_studio.starter.corpus import Corpus
from dpo_studio.starter.fast_loss import reading_loss, weighted_loss
from dpo_studio.starter.muon import Muon
from dpo_studio.starter.tokenizer import CONTEXT, load_tokenizer, train_tokenizer

TOKENIZER_DOCUMENTS = 60_000
# In training only, a linear reader names the subject from the middle layer. What an answer is about is learnt
# last and stands in few tokens; asking for it outright teaches the lower half to read the prompt sooner.
READER_SHARE = 0.5
PROMPT_TOKENS = 5120  # of prompts alone beside every batch: much reading, which costs half a pass and no head
# Factor on the exported logits, by way of the last norm's weight: one word in a hundred drawn from the noise
# floor spoils an answer, so sampling at temperature 0.9 is made to act as at 0.9 / SHARPNESS.
SHARPNESS = 1.1
AVERAGE_STEP = 0.004  # the average looks back some 250 steps


@dataclass(frozen=True)
class Plan:
    """What a run may cost and where it puts things."""

    work_dir: Path
    out: Path
    minutes: float
    decay: float
    seed: int
    batch_tokens: int
    muon_lr: float
    adam_lr: float
    save_every_s: float
    export_only: bool


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    spent_s: float = 0.0
    loss: float = 0.0
    reading: float = 0.0


def main() -> None:
    """Parse flags, then train."""
    plan = _parse()
    plan.work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(plan.seed)
    corpus = Corpus()
    tokenizer = make_tokenizer(corpus, plan)
    if plan.export_only:
        model = build_model(tokenizer)
        model.load_state_dict(_resume_average(plan, model))
        export(model, tokenizer, plan.out)
    else:
        train(plan, corpus, tokenizer)


def make_tokenizer(corpus: Corpus, plan: Plan) -> PreTrainedTokenizerFast:
    """The tokenizer of the work folder, learnt first where there is none."""
    folder = plan.work_dir / "tokenizer"
    if not (folder / "tokenizer.json").exists():
        train_tokenizer(_vocabulary_texts(corpus, plan.seed)).save_pretrained(folder)
    return load_tokenizer(folder)


def _vocabulary_texts(corpus: Corpus, seed: int) -> Iterator[str]:
    """What the vocabulary is learnt from: answers and clean prompts, since typos and strangers would eat
    merges."""
    for item in islice(corpus.conversations(seed), TOKENIZER_DOCUMENTS):
        yield from (text for role, text in item.turns if role == "assistant")
    rng = random.Random(seed)
    for topic in corpus.topics:
        for entity in topic.entities:
            yield from (
                corpus.inside_prompt(entity, rng).lower() for _ in range(60) if not entity.is_stranger
            )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A fresh Llama of the starter's size."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=672,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 0.5 / parameter.size(1) ** 0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= (2 * config.num_hidden_layers) ** 0.5  # residual branches start small
            torch.nn.init.normal_(parameter, std=std)
    return model


def optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices, AdamW for the embedding (tied to the head) and the norms."""
    hidden = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        Muon(hidden, lr=plan.muon_lr),
        torch.optim.AdamW(rest, lr=plan.adam_lr, betas=(0.9, 0.97), weight_decay=0.0, fused=True),
    ]


def train(plan: Plan, corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> None:
    """Train until the budget is spent; writes a checkpoint every few minutes and the model at the end."""
    model = build_model(tokenizer)
    reader = torch.nn.Linear(model.config.hidden_size, len(corpus.contents()))
    steppers = [*optimizers(model, plan), torch.optim.AdamW(reader.parameters(), lr=plan.adam_lr)]
    progress = _resume(plan, model, reader, steppers)
    average = _resume_average(plan, model)
    base_rates = [group["lr"] for stepper in steppers for group in stepper.param_groups]
    encoder, seed = Encoder(tokenizer, corpus.contents()), plan.seed + progress.step + 1
    stream = batches(corpus.conversations(seed), encoder, seed, plan.batch_tokens)
    prompts = batches(corpus.questions(seed + 1), encoder, seed, PROMPT_TOKENS)
    last, saved = time.monotonic(), time.monotonic()
    stop = _StopSignal()
    while progress.spent_s < plan.minutes * 60:
        scale = rate_scale(progress, plan)
        for group, rate in zip((g for s in steppers for g in s.param_groups), base_rates, strict=True):
            group["lr"] = rate * scale
        batch = next(stream)
        loss, reading = _step(model, reader, steppers, batch, next(prompts))
        _follow(average, model)
        now = time.monotonic()
        progress.spent_s, last = progress.spent_s + now - last, now
        progress.step += 1
        progress.tokens += int((batch.weights > 0).sum())
        progress.loss += (loss - progress.loss) * (0.01 if progress.loss else 1.0)
        progress.reading += (reading - progress.reading) * (0.01 if progress.reading else 1.0)
        if progress.step % 100 == 0:
            _say(f"step {progress.step} tokens {progress.tokens} s {progress.spent_s:.0f} scale {scale:.3f} "
                 f"loss {progress.loss:.4f} reading {progress.reading:.4f}")  # fmt: skip
        if now - saved > plan.save_every_s or stop.asked:
            _checkpoint(plan, model, reader, average, steppers, base_rates, progress)
            saved = now
        if stop.asked:
            _say("stopped; the same command goes on from here")
            return
    _checkpoint(plan, model, reader, average, steppers, base_rates, progress)
    model.load_state_dict(average)
    export(model, tokenizer, plan.out)


class _StopSignal:
    """Remembers a SIGTERM or Ctrl-C, so that the run ends between two steps with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        self.asked = True


def rate_scale(progress: Progress, plan: Plan) -> float:
    """Trapezoid: 100 steps up, flat, then linearly to zero over the last `decay` of the budget."""
    left = 1 - progress.spent_s / (plan.minutes * 60)
    return min(1.0, (progress.step + 1) / 100, max(left, 0.0) / plan.decay)


@torch.no_grad()
def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the folder that the studio serves: beside, then renamed into place."""
    beside = out.with_name(out.name + ".new")
    half = LlamaForCausalLM(model.config).to(torch.bfloat16)
    half.load_state_dict(model.state_dict())
    half.model.norm.weight.mul_(SHARPNESS)
    half.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True,
        temperature=0.9, max_new_tokens=160,
    )  # fmt: skip
    half.save_pretrained(beside)
    tokenizer.save_pretrained(beside)
    for path in beside.iterdir():
        path.chmod(0o644)
    old = out.with_name(out.name + ".old")
    if out.exists():
        out.rename(old)
    beside.rename(out)
    if old.exists():
        for path in old.iterdir():
            path.unlink()
        old.rmdir()


def _step(
    model: LlamaForCausalLM,
    reader: torch.nn.Linear,
    steppers: list[torch.optim.Optimizer],
    batch: Batch,
    prompts: Batch,
) -> tuple[float, float]:
    loss, reading = weighted_loss(model, batch, reader)
    extra = reading_loss(model, reader, prompts)
    (loss + READER_SHARE * (reading + extra)).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        stepper.step()
        stepper.zero_grad()
    return float(loss.detach()), float(extra.detach())


def _resume_average(plan: Plan, model: LlamaForCausalLM) -> dict[str, Tensor]:
    """The moving average of the weights, which is as good as a decayed rate and there at any moment."""
    path = plan.work_dir / "checkpoint.pt"
    saved = torch.load(path, weights_only=True) if path.exists() else {}
    start: dict[str, Tensor] = saved.get("average") or saved.get("model") or model.state_dict()
    return {name: tensor.detach().clone() for name, tensor in start.items()}


@torch.no_grad()
def _follow(average: dict[str, Tensor], model: LlamaForCausalLM) -> None:
    for name, tensor in model.state_dict().items():
        average[name].lerp_(tensor, AVERAGE_STEP)


def _checkpoint(
    plan: Plan,
    model: LlamaForCausalLM,
    reader: torch.nn.Linear,
    average: dict[str, Tensor],
    steppers: list[torch.optim.Optimizer],
    base_rates: list[float],
    progress: Progress,
) -> None:
    state = {
        "model": model.state_dict(),
        "reader": reader.state_dict(),
        "average": average,
        "optimizers": [stepper.state_dict() for stepper in steppers],
        "rates": base_rates,
        "progress": vars(progress),
    }
    beside = plan.work_dir / "checkpoint.pt.new"
    torch.save(state, beside)
    os.replace(beside, plan.work_dir / "checkpoint.pt")


def _resume(
    plan: Plan,
    model: LlamaForCausalLM,
    reader: torch.nn.Linear,
    steppers: list[torch.optim.Optimizer],
) -> Progress:
    path = plan.work_dir / "checkpoint.pt"
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    reader.load_state_dict(state["reader"])
    rates = iter(state["rates"])
    for stepper, saved in zip(steppers, state["optimizers"], strict=True):
        stepper.load_state_dict(saved)
        for group in stepper.param_groups:
            group["lr"] = next(rates)
    _say(f"resumed at step {state['progress']['step']}")
    return Progress(**state["progress"])


def _parse() -> Plan:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--work-dir", type=Path, default=Path("/tmp/starter"), help="checkpoints and tokenizer"
    )
    parser.add_argument("--out", type=Path, default=model_dir(), help="where the finished model goes")
    parser.add_argument("--minutes", type=float, default=90.0, help="wall-clock budget of the whole training")
    parser.add_argument("--decay", type=float, default=0.8, help="last part of the budget with falling rates")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--batch-tokens", type=int, default=3840)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.004)
    parser.add_argument("--save-every-s", type=float, default=180.0)
    parser.add_argument(
        "--export-only", action="store_true", help="write the last checkpoint as a model and stop"
    )
    return Plan(**vars(parser.parse_args()))


def _say(line: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
