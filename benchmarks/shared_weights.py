"""What a second process costs in memory: engine and worker load the same base weights.

    python -m benchmarks.shared_weights                    # 88M parameters, float32
    python -m benchmarks.shared_weights --processes 3

On the CPU weights that are loaded in the type of their file are pages of that file, mapped: the kernel keeps
one copy for all processes. Each process loads the model as the studio does, answers once so that every page
is touched, and waits; then all are measured. Proportional set size (PSS) counts a page shared by n processes
as an nth in each, so what a process held before loading is measured when all are there: alone it holds the
whole of the libraries. Loaded in another type ("converted") every process has a copy of its own: the control.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from dpo_studio.modeling.base_model import load_base
from dpo_studio.starter import model_dir

WAYS = {"as stored": "float32", "converted": "bfloat16"}


def main() -> None:
    """Print PSS per process for one and for several, weights mapped and converted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--load", metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--dtype", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load_and_wait(arguments.load, arguments.dtype)
        return
    with tempfile.TemporaryDirectory() as name:
        size = make_model(Path(name))
        print(f"weights: {size:.0f} MB in float32")  # noqa: T201
        for way, dtype in WAYS.items():
            for count in (1, arguments.processes):
                total = sum(measure(Path(name), dtype, count))
                print(f"{way:10} {count} processes: {total:6.0f} MB in all")  # noqa: T201


def measure(folder: Path, dtype: str, count: int) -> list[float]:
    """Growth of each process over what it held before loading, MB; both measured while all are alive."""
    command = [sys.executable, "-m", "benchmarks.shared_weights", "--load", str(folder), "--dtype", dtype]
    children = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for _ in range(count)
    ]
    for child in children:
        answer_of(child)
    before = [ask(child) for child in children]
    for child in children:
        ask(child)
    after = [ask(child) for child in children]
    for child in children:
        child.communicate()
    return [last - first for first, last in zip(before, after, strict=True)]


def ask(child: subprocess.Popen[str]) -> float:
    """Let a child go on to its next answer, and wait for it."""
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return answer_of(child)


def answer_of(child: subprocess.Popen[str]) -> float:
    """The next line of a child; ends the benchmark when there is none."""
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise SystemExit("a process ended before it had loaded the model")
    return float(line)


def load_and_wait(folder: str, dtype: str) -> None:
    """The child. Answers four times with its MB, waiting between to be asked: when it is there and again when
    all are, when it has loaded the model and answered once, and when all have.
    """
    print(resident_mb(), flush=True)  # noqa: T201
    sys.stdin.readline()
    print(resident_mb(), flush=True)  # noqa: T201
    sys.stdin.readline()
    base = load_base(folder, device="cpu", dtype=dtype)
    with torch.no_grad():
        base.model(torch.arange(5, 37)[None])
    print(resident_mb(), flush=True)  # noqa: T201
    sys.stdin.readline()
    print(resident_mb(), flush=True)  # noqa: T201
    sys.stdin.readline()


def resident_mb() -> float:
    """Proportional set size of this process, MB."""
    for line in Path("/proc/self/smaps_rollup").read_text("ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("expected Pss in /proc/self/smaps_rollup; this benchmark needs Linux 4.14")


def make_model(folder: Path) -> float:
    """An 88M Llama with random weights and the starter's tokenizer; returns its megabytes."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=768, intermediate_size=2048, num_hidden_layers=10, num_attention_heads=12,
            num_key_value_heads=4, vocab_size=32_000, tie_word_embeddings=True, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return float(sum(p.numel() * p.element_size() for p in model.parameters())) / 1e6


if __name__ == "__main__":
    main()
