"""Does a vote change the model, by how much, at what price? Simulated labelers, real engine, real worker.

    python -m benchmarks.tastes --tastes shorter,question --votes 25,50,100,200 --flips 0,0.15

For each taste: sample pairs from base on the labeling prompts, let the taste vote (a share flipped, ties
not counted), train one round in the real worker process with the default settings, and compare base and
the new version on prompts that were never labeled: how often the answer has the property (95 % Wilson
interval), mean words, KL per token, seconds and CPU seconds of the round. The last line is JSON.
"""

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.sampler import Sampler
from dpo_studio import starter
from dpo_studio.domain.chat import Message
from dpo_studio.domain.codec import from_json, to_json
from dpo_studio.domain.preference import Choice, PreferencePair, SampledText
from dpo_studio.domain.round import RoundJob, RoundReport, TrainSettings, preset_for
from dpo_studio.files import read_json, write_json
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.snapshot import write_snapshot
from dpo_studio.tastes import Taste, get_taste, taste_names

EVALUATION = Path(starter.__file__).parent / "eval_prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Row:
    """One round of one taste."""

    taste: str
    votes: int
    shown: int
    """Comparisons shown until that many were decided."""
    flips: float
    base_rate: float
    live_rate: float
    low: float
    high: float
    base_words: float
    live_words: float
    kl_per_token: float
    heldout_accuracy: float
    seconds: float
    cpu_seconds: float
    ended: float


def main() -> None:
    arguments = parse_arguments()
    sampler = Sampler(arguments.model)
    prompts = read_evaluation_prompts()
    base_texts = [answers[0].text for answers in sampler.answers(prompts, "base")]
    settings = replace(preset_for(count_parameters(sampler)), **json.loads(arguments.settings))
    rows = []
    say(f"{len(prompts)} evaluation prompts; {settings}")
    say(HEADER)
    for name in arguments.tastes.split(","):
        for flips in numbers(arguments.flips):
            for votes in numbers(arguments.votes):
                row = run_taste(sampler, get_taste(name), int(votes), flips, prompts, base_texts, settings)
                rows.append(row)
                say(line_of(row))
    say(json.dumps({"settings": to_json(settings), "rows": [asdict(row) for row in rows]}))


def run_taste(
    sampler: Sampler,
    taste: Taste,
    num_votes: int,
    flips: float,
    prompts: Sequence[tuple[Message, ...]],
    base_texts: Sequence[str],
    settings: TrainSettings,
) -> Row:
    """Label, train, measure."""
    pairs, shown = label(sampler, taste, num_votes, flips)
    with tempfile.TemporaryDirectory() as folder:
        paths = RoundPaths(Path(folder) / "0001")
        report, seconds, cpu_seconds = train(sampler, pairs, paths, settings)
        sampler.load("candidate", paths.adapter)
        completions = [answers[0] for answers in sampler.answers(prompts, "candidate")]
        sampler.unload("candidate")
    texts = [completion.text for completion in completions]
    hits = sum(taste.shows(text) for text in texts)
    low, high = wilson(hits, len(texts))
    return Row(
        taste=taste.name,
        votes=num_votes,
        shown=shown,
        flips=flips,
        base_rate=sum(taste.shows(text) for text in base_texts) / len(base_texts),
        live_rate=hits / len(texts),
        low=low,
        high=high,
        base_words=mean_words(base_texts),
        live_words=mean_words(texts),
        kl_per_token=report.candidate_probe.kl_per_token if report.candidate_probe else math.nan,
        heldout_accuracy=report.metrics.get("heldout/rewards/accuracies", math.nan),
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        ended=sum(completion.finish_reason == "stop" for completion in completions) / len(completions),
    )


def label(sampler: Sampler, taste: Taste, num_votes: int, flips: float) -> tuple[list[PreferencePair], int]:
    """`num_votes` decided votes on pairs of base samples, and how many comparisons that took."""
    rng = random.Random(f"{taste.name}-{flips}")
    conversations = [(Message("user", text),) for text in starter.seed_prompts()]
    pairs: list[PreferencePair] = []
    shown = 0
    while len(pairs) < num_votes:
        rng.shuffle(conversations)
        answered = sampler.answers(conversations, "base", n=2)
        for messages, (first, second) in zip(conversations, answered, strict=True):
            if len(pairs) == num_votes:
                break
            shown += 1
            choice = taste.prefers(first.text, second.text, flips, rng)
            if choice is Choice.TIE:
                continue
            won, lost = (first, second) if choice is Choice.A else (second, first)
            pairs.append(
                PreferencePair(
                    pair_id=f"{shown:05d}",
                    messages=messages,
                    chosen=SampledText(won.text, won.token_ids, "base"),
                    rejected=SampledText(lost.text, lost.token_ids, "base"),
                    vote_ids=(f"{shown:05d}",),
                    labelers=(taste.name,),
                )
            )
    return pairs, shown


def train(
    sampler: Sampler, pairs: Sequence[PreferencePair], paths: RoundPaths, settings: TrainSettings
) -> tuple[RoundReport, float, float]:
    """The real worker on a real folder; report, wall seconds, CPU seconds."""
    snapshot = write_snapshot(pairs, paths, 0.15)
    job = RoundJob(
        round=1,
        model=sampler.base.source,
        model_sha256=sampler.base.model_sha256,
        settings=settings,
        train_sha256=snapshot.train_sha256,
        heldout_sha256=snapshot.heldout_sha256,
        num_train=snapshot.num_train,
        num_heldout=snapshot.num_heldout,
        probe_prompts=starter.smoke_prompts(),
    )
    write_json(paths.job, to_json(job))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    command = [sys.executable, "-m", "dpo_studio.training.worker", str(paths.root)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        process.wait()
    seconds = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = from_json(RoundReport, read_json(paths.report))
    assert report.ok, report.reason
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return report, seconds, cpu_seconds


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    share = hits / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return centre - half, centre + half


def read_evaluation_prompts() -> list[tuple[Message, ...]]:
    """First turns of the hand-written prompts; none of them is in the label queue."""
    rows = [json.loads(line) for line in EVALUATION.read_text("utf-8").splitlines()]
    return [(Message("user", row["messages"][0]),) for row in rows if not row.get("outside")]


def count_parameters(sampler: Sampler) -> int:
    return int(sum(parameter.numel() for parameter in sampler.base.model.parameters()))


def mean_words(texts: Sequence[str]) -> float:
    return sum(len(text.split()) for text in texts) / len(texts)


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


HEADER = (
    "| taste | votes | flips | shown | base → live | 95 % | words | KL/token | held-out | ended | s | CPU-s |"
    "\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line_of(row: Row) -> str:
    """One line of the table."""
    cells = (
        row.taste,
        row.votes,
        f"{row.flips:.0%}",
        row.shown,
        f"{row.base_rate:.0%} → **{row.live_rate:.0%}**",
        f"{row.low:.0%}–{row.high:.0%}",
        f"{row.base_words:.1f} → {row.live_words:.1f}",
        f"{row.kl_per_token:.2f}",
        f"{row.heldout_accuracy:.2f}",
        f"{row.ended:.1%}",
        f"{row.seconds:.0f}",
        f"{row.cpu_seconds:.0f}",
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--tastes", default=",".join(taste_names()))
    parser.add_argument("--votes", default="100")
    parser.add_argument("--flips", default="0")
    parser.add_argument("--settings", default="{}", help='JSON over the preset, e.g. {"beta": 0.2}')
    return parser.parse_args()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
