"""What a DPO step costs: TRL 1.16 against ours, on the same weights, adapter, pairs, order and micro-batch.

    python -m benchmarks.dpo_step                      # 40M parameters, vocabulary 32k
    python -m benchmarks.dpo_step --quick              # a toy shape: loss parity over 20 steps, a minute
    python -m benchmarks.dpo_step --shapes smol --repeats 1 --variants trl-tuned,ours

Every run is a process of its own with one thread; variants take turns, figures are medians over repeats.
CPU seconds are those of the steps alone (both sides have their reference log-probabilities before, where
the variant computes them once), the first step of every run left out. Memory is the peak resident size, and
its growth over what the process held before training. FLOPs are those of matrix products and attention in one
step, counted operator by operator, so they do not depend on the machine. Everything is float32. The last line
is JSON.
"""

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.utils.flop_counter

from dpo_studio.domain.round import TrainSettings
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.dpo.evaluate import score_pairs
from dpo_studio.dpo.layouts import PADDED, PREFIX_SHARED, Layout
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import CPU_MAX_TOKENS, MemoryBudget
from dpo_studio.dpo.trainer import Trainer
from dpo_studio.modeling.adapters import new_lora

Around = Callable[[], AbstractContextManager[Any]]
VARIANTS = {
    "trl-default": "TRL as it comes: checkpointing, a reference forward in every step",
    "trl-tuned": "TRL at its best settings: no checkpointing, reference computed once",
    "trl-cuda": "trl-tuned with the algorithm TRL uses on CUDA: the head scores labels only",
    "ours-padded": "ours on the last rung: padded rows, fused head",
    "ours": "prefix-shared, all pairs of a step in one row",
    "ours-budget": "prefix-shared, with the token budget that rounds use",
}
# hidden, intermediate, layers, heads, key-value heads, vocabulary, pairs a step.
SHAPES = {
    "toy": (128, 256, 4, 4, 2, 2048, 4),
    "v32k": (512, 1408, 8, 8, 4, 32_000, 4),
    "v152k": (384, 1024, 8, 6, 3, 151_936, 2),
    "smol": (576, 1536, 30, 9, 3, 49_152, 2),
}
# Mean tokens of prompt and response; single lengths vary around them by 30 % and 50 %.
LENGTHS = {"long": (382, 127), "short": (43, 121)}


@dataclass(frozen=True, slots=True)
class Run:
    """One process: one variant once."""

    losses: tuple[float, ...]
    cpu_seconds_per_pair: float
    peak_mb: float
    growth_mb: float
    tokens_per_pair: float
    gflops_per_pair: float
    """0 in a run that measures time: counting slows every operator down."""


def main() -> None:
    arguments = parse_arguments()
    if arguments.run:
        run = measure(
            arguments.run, arguments.shapes, arguments.lengths, arguments.steps, count=arguments.count
        )
        print(json.dumps(asdict(run)))  # noqa: T201
        return
    shapes = ["toy"] if arguments.quick else arguments.shapes.split(",")
    steps = 20 if arguments.quick else arguments.steps
    results = {}
    for shape in shapes:
        for lengths in arguments.lengths.split(","):
            runs = interleave(arguments.variants.split(","), shape, lengths, steps, arguments.repeats)
            print(table(shape, lengths, runs), flush=True)  # noqa: T201
            results[f"{shape}/{lengths}"] = {name: summary(of) for name, of in runs.items()}
    print(json.dumps(results))  # noqa: T201


def interleave(
    variants: Sequence[str], shape: str, lengths: str, steps: int, repeats: int
) -> dict[str, list[Run]]:
    """A/B/C, A/B/C, …: what else the machine does falls on all alike. FLOPs are counted once, in a run of
    their own, on one step of the same pairs for all.
    """
    runs: dict[str, list[Run]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name in variants:
            runs[name].append(in_process(name, shape, lengths, steps))
    for name in variants:
        counted = in_process(name, shape, lengths, 1, "--count").gflops_per_pair
        runs[name] = [replace(run, gflops_per_pair=counted) for run in runs[name]]
    return runs


def in_process(variant: str, shape: str, lengths: str, steps: int, *flags: str) -> Run:
    """Measure in a fresh single-threaded process."""
    options = ["--run", variant, "--shapes", shape, "--lengths", lengths, "--steps", str(steps), *flags]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.dpo_step", *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{variant}: the process ended with {done.returncode}:\n{done.stderr[-2000:]}")
    values = json.loads(done.stdout.splitlines()[-1])
    return Run(**{**values, "losses": tuple(values["losses"])})


def measure(variant: str, shape: str, lengths: str, steps: int, *, count: bool = False) -> Run:
    """Train `steps` steps in this process; with `count`, for their FLOPs instead of their time."""
    torch.set_num_threads(1)
    batch_size = SHAPES[shape][-1]
    # From the first step at full rate: the two sides are to differ if they can.
    settings = TrainSettings(
        epochs=1, batch_size=batch_size, learning_rate=1e-4, warmup_ratio=0.0, max_length=2048
    )
    pairs = make_pairs(lengths, batch_size * steps, SHAPES[shape][-2])
    run = run_trl if variant.startswith("trl") else run_ours
    flops: list[int] = []
    around = partial(counting, flops) if count else nullcontext
    losses, seconds, base_mb = run(variant, shape, pairs, settings, around)
    layout = PREFIX_SHARED if variant in ("ours", "ours-budget") else PADDED
    batches = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
    tokens = sum(layout.num_tokens([layout.size(pair) for pair in batch]) for batch in batches)
    timed = seconds[1:] or seconds
    return Run(
        losses=tuple(losses),
        cpu_seconds_per_pair=statistics.mean(timed) / batch_size,
        peak_mb=resident_mb("VmHWM"),
        growth_mb=resident_mb("VmHWM") - base_mb,
        tokens_per_pair=tokens / len(pairs),
        gflops_per_pair=sum(flops) / len(pairs) / 1e9,
    )


def run_ours(
    variant: str, shape: str, pairs: list[TokenPair], settings: TrainSettings, around: Around
) -> tuple[list[float], list[float], float]:
    """Losses and CPU seconds of each step, and the memory held before."""
    model = new_lora(make_model(shape), settings.lora_rank, settings.lora_alpha, settings.seed)
    base_mb = resident_mb("VmRSS")
    layout: Layout = PADDED if variant == "ours-padded" else PREFIX_SHARED
    max_tokens = CPU_MAX_TOKENS if variant == "ours-budget" else 1_000_000
    budget = MemoryBudget(max_tokens)
    scorer = ResponseScorer(model)
    with model.disable_adapter():
        reference = score_pairs(scorer, pairs, MemoryBudget(CPU_MAX_TOKENS), layout=layout)
    trainer = Trainer(scorer, pairs, reference, settings, layout=layout, budget=budget)
    losses, seconds = [], []
    for result, cost in timed(trainer.steps(), around):
        losses.append(result.metrics["loss"])
        seconds.append(cost)
    return losses, seconds, base_mb


def run_trl(
    variant: str, shape: str, pairs: list[TokenPair], settings: TrainSettings, around: Around
) -> tuple[list[float], list[float], float]:
    """The same of TRL."""
    from benchmarks.trl_trainer import trl_steps

    # The adapter of our side: drawn on a second copy of the model, and gone before anything is measured.
    drawn = new_lora(make_model(shape), settings.lora_rank, settings.lora_alpha, settings.seed)
    initial = {name: p.detach().clone() for name, p in drawn.named_parameters() if p.requires_grad}
    del drawn
    model = make_model(shape)
    if variant == "trl-cuda":
        utils: Any = importlib.import_module("trl.trainer.utils")
        utils._use_triton = lambda _device: True
    base_mb = resident_mb("VmRSS")
    options = {}
    if variant != "trl-default":
        options = {"gradient_checkpointing": False, "precompute_ref_log_probs": True}
    with tempfile.TemporaryDirectory() as folder:
        steps = trl_steps(model, pairs, settings, initial, Path(folder), around, **options)
    return [step.loss for step in steps], [step.cpu_seconds for step in steps], base_mb


@contextmanager
def counting(flops: list[int]) -> Iterator[None]:
    """Append the FLOPs of what runs inside. Attention on the CPU and products added in place (TRL's head,
    backwards) are added to what the counter knows; what a mask hides counts, as in its own rules.
    """
    counters: Any = torch.utils.flop_counter
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    rules: Any = {
        torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * math.prod(a) * b[-1],
        forward: lambda q, k, v, *_, **__: counters.sdpa_flop_count(q, k, v),
        backward: lambda out, q, k, v, *_, **__: counters.sdpa_backward_flop_count(out, q, k, v),
    }
    with counters.FlopCounterMode(display=False, custom_mapping=rules) as counter:
        yield
    flops.append(counter.get_total_flops())


def timed(steps: Iterator[Any], around: Around) -> Iterator[tuple[Any, float]]:
    """Each item with the CPU seconds that it took."""
    while True:
        started = time.process_time()
        with around():
            item = next(steps, None)
        if item is None:
            return
        yield item, time.process_time() - started


def make_model(shape: str) -> Any:
    """A Llama with random weights, the same every time; frozen, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, intermediate, layers, heads, kv_heads, vocabulary, _ = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    return model.requires_grad_(False).eval()


def make_pairs(lengths: str, count: int, vocabulary: int) -> list[TokenPair]:
    """Random tokens; lengths uniform around the means."""
    prompt_mean, response_mean = LENGTHS[lengths]
    generator = torch.Generator().manual_seed(1)

    def draw(mean: int, spread: float) -> tuple[int, ...]:
        low, high = int(mean * (1 - spread)), int(mean * (1 + spread))
        length = int(torch.randint(low, high + 1, (), generator=generator))
        return tuple(torch.randint(2, vocabulary, (length,), generator=generator).tolist())

    return [
        TokenPair(draw(prompt_mean, 0.3), draw(response_mean, 0.5), draw(response_mean, 0.5))
        for _ in range(count)
    ]


def resident_mb(field: str) -> float:
    """A memory field of this process from the kernel, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit(f"expected {field} in /proc/self/status; this benchmark needs Linux")


def summary(runs: Sequence[Run]) -> dict[str, float]:
    """Medians over repeats."""
    return {
        "cpu_seconds_per_pair": median(runs, lambda run: run.cpu_seconds_per_pair),
        "peak_mb": median(runs, lambda run: run.peak_mb),
        "growth_mb": median(runs, lambda run: run.growth_mb),
        "tokens_per_pair": runs[0].tokens_per_pair,
        "gflops_per_pair": runs[0].gflops_per_pair,
    }


def median(runs: Sequence[Run], field: Callable[[Run], float]) -> float:
    return statistics.median(field(run) for run in runs)


def table(shape: str, lengths: str, runs: dict[str, list[Run]]) -> str:
    """Figures, how much better the best of ours is, and the losses side by side."""
    lines = [f"\n{shape}, {lengths} prompts (medians of {len(next(iter(runs.values())))})"]
    lines.append(f"{'':14}{'CPU s/pair':>11}{'× ours':>8}{'peak MB':>9}{'growth':>8}{'tokens':>8}"
                 f"{'GFLOP':>9}{'× ours':>8}")  # fmt: skip
    ours = (
        summary(runs["ours"])
        if "ours" in runs
        else dict.fromkeys(summary(next(iter(runs.values()))), float("nan"))
    )
    for name, of in runs.items():
        row = summary(of)
        cost, flops = row["cpu_seconds_per_pair"], row["gflops_per_pair"]
        lines.append(
            f"{name:14}{cost:11.3f}{cost / ours['cpu_seconds_per_pair']:8.2f}{row['peak_mb']:9.0f}"
            f"{row['growth_mb']:8.0f}{row['tokens_per_pair']:8.0f}"
            f"{flops:9.1f}{flops / ours['gflops_per_pair']:8.2f}"
        )
    lines.append("loss by step: " + "  ".join(runs))
    for step, losses in enumerate(zip(*(of[0].losses for of in runs.values()), strict=True), start=1):
        lines.append(f"{step:4} " + "  ".join(f"{loss:.6f}" for loss in losses))
    gaps = [abs(a - b) for of in runs.values() for a, b in zip(of[0].losses, _first(runs), strict=True)]
    lines.append(f"largest difference between losses of one step: {max(gaps):.1e}")
    return "\n".join(lines)


def _first(runs: dict[str, list[Run]]) -> tuple[float, ...]:
    return next(iter(runs.values()))[0].losses


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy shape, 20 steps")
    parser.add_argument("--shapes", default="v32k", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--lengths", default="long,short")
    parser.add_argument(
        "--variants",
        default="trl-default,trl-tuned,trl-cuda,ours,ours-budget",
        help="\n".join(f"{name}: {text}" for name, text in VARIANTS.items()),
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
