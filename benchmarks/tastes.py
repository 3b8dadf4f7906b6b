"""Does a vote change the model, by how much, at what price? Simulated labelers, real engine, real worker.

    python -m benchmarks.tastes --votes 25,50,100,200 --flips 0,0.15 --out rows.jsonl
    python -m benchmarks.tastes --disagree --out rows.jsonl        two halves that want opposite things
    python -m benchmarks.tastes --rounds 3 --out rows.jsonl        fresh votes from the live version each time
    python -m benchmarks.tastes --then "shorter>longer" --out rows.jsonl               a change of mind
    python -m benchmarks.tastes --sweep '{"beta": [0.05, 0.2]}' --in-process --out sweep.jsonl
    python -m benchmarks.taste_table rows.jsonl                    the rows as Markdown

For each taste: vote on pairs sampled from what is live (a share flipped, ties not counted), train in the real
worker process with the default settings, and compare base with the candidate on prompts that were never
labeled. Rows are appended to `--out` one by one; a run that was killed goes on where it was, and several
processes share the work by `--shard 0/2` and `--shard 1/2`.

Settings are tuned on half of the tastes and half of the prompts (`--half tuning`, which `--sweep` takes for
granted) and reported on the others (`--half reporting`) or on prompts of a file of their own (`--prompts`).
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.evaluation import EVALUATION, Evaluation, Half
from benchmarks.sampler import Sampler
from benchmarks.taste_round import Training
from benchmarks.taste_rows import RowFile
from benchmarks.taste_runs import Bench, Plan
from benchmarks.taste_table import header_of, line_of
from dpo_studio.domain.round import preset_for
from dpo_studio.tastes import taste_names

TUNING = ("shorter", "formal", "question", "hedged", "list", "emoji", "no-question")
"""Tastes that settings may be chosen by: hard ones (shorter) and easy ones (no-question)."""
REPORTING = tuple(name for name in taste_names() if name not in TUNING)
MINDS = "shorter>longer,formal>warm,question>no-question,list>prose,hedged>no-hedging"


def main() -> None:
    arguments = parse_arguments()
    half: Half = "tuning" if arguments.sweep else arguments.half
    sampler = Sampler(arguments.model)
    evaluation = Evaluation(arguments.prompts, half, arguments.samples)
    preset = Training(preset_for(sampler.num_parameters), is_in_process=arguments.in_process)
    training = change(preset, json.loads(arguments.settings))
    bench = Bench(sampler, evaluation, training, arguments.pools, seed=arguments.seed)
    rows = RowFile(arguments.out)
    tastes = arguments.tastes.split(",") if arguments.tastes else default_tastes(half)
    say(f"{len(evaluation.prompts)} evaluation prompts of {evaluation.name}; {training}")
    say(header_of())
    part, parts = map(int, arguments.shard.split("/"))
    work = [
        (changed, plan)
        for changed in sweep(training, json.loads(arguments.sweep or "{}"))
        for plan in plans(arguments, tastes)
    ]
    for changed, plan in work[part::parts]:
        run(bench.with_training(changed), plan, rows)


def run(bench: Bench, plan: Plan, rows: RowFile) -> None:
    """Measure a plan unless all its rows are there; a broken chain begins again."""
    if all(key in rows for key in bench.keys(plan)):
        return
    for row in bench.run(plan):
        rows.add(row)
        say(line_of(row))


def plans(arguments: argparse.Namespace, tastes: list[str]) -> Iterator[Plan]:
    """What to do with one setting, the numbers of votes in the order given."""
    flips = [float(part) for part in arguments.flips.split(",")]
    for votes in [int(part) for part in arguments.votes.split(",")]:
        if arguments.disagree:
            yield from (Plan("disagree", name, (name,), votes, is_divided=True) for name in tastes)
        elif arguments.rounds > 1:
            yield from (Plan("rounds", name, (name,) * arguments.rounds, votes) for name in tastes)
        elif arguments.then:
            for change in arguments.then.split(","):
                yield Plan("then", change, tuple(change.split(">")), votes)
        else:
            yield from (Plan("plain", name, (name,), votes, share) for share in flips for name in tastes)


def sweep(training: Training, factors: dict[str, list[Any]] | list[dict[str, Any]]) -> Iterator[Training]:
    """The settings as they are, then with one factor changed at a time, or with each of a list of changes."""
    if isinstance(factors, dict):
        factors = [{name: value} for name, values in factors.items() for value in values]
    yield from dict.fromkeys([training, *(change(training, factor) for factor in factors)])


def change(training: Training, changes: dict[str, Any]) -> Training:
    """Other settings; `drift_budget` counts as one, although it is a constant of the product."""
    settings = {name: value for name, value in changes.items() if name != "drift_budget"}
    budget = changes.get("drift_budget", training.drift_budget)
    assert budget is None or training.is_in_process, "drift_budget needs --in-process"
    return replace(training, settings=replace(training.settings, **settings), drift_budget=budget)


def default_tastes(half: Half) -> list[str]:
    return list({"tuning": TUNING, "reporting": REPORTING, "all": taste_names()}[half])


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", default="starter", help="as `dpo-studio serve` takes it")
    add("--tastes", default="", help="names, also joined by + (default: those of the half)")
    add("--votes", default="100", help="decided votes of each round")
    add("--flips", default="0", help="shares of votes that come out wrong; for plain runs")
    add("--settings", default="{}", help='JSON over the preset, e.g. {"beta": 0.2}')
    add("--prompts", type=Path, default=EVALUATION, help="evaluation prompts, JSON lines: messages, accept")
    add("--half", choices=("tuning", "reporting", "all"), default="all", help="of the prompts and tastes")
    add("--samples", type=int, default=2, help="answers to each evaluation prompt")
    add("--out", type=Path, help="JSON lines; rows that are there are skipped")
    add("--shard", default="0/1", help="which part of the work, of how many")
    add("--seed", type=int, default=0, help="of the voters and the labeled samples")
    add("--pools", type=Path, default=Path(tempfile.gettempdir()) / "dpo-studio-pools", help="kept samples")
    add("--in-process", action="store_true", help="train without a worker process (quicker, for sweeps)")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--disagree", action="store_true", help="half of the voters want the opposite")
    kind.add_argument("--rounds", type=int, default=1, help="rounds in a row, votes on the live version")
    kind.add_argument("--then", nargs="?", const=MINDS, default="", help=f"changes of mind ({MINDS})")
    kind.add_argument(
        "--sweep", default="", help='JSON: {"beta": [0.05, 0.2]} or [{"beta": 0.2, "epochs": 6}]'
    )
    return parser.parse_args()


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
