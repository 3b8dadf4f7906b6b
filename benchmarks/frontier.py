"""Reward against KL for several β: DPO and IPO, ours and TRL's, on a reward that is known.

    python -m benchmarks.frontier --out frontier.jsonl                 docs/img/frontier.png and two tables
    python -m benchmarks.frontier --out frontier.jsonl --taste warm --plot warm.png

The benchmark of Rafailov et al. 2023 (figure 2) on the starter: the reward is a taste's score. Pairs of
base's answers are labelled by Bradley–Terry on it; each loss and β trains an adapter with our trainer, and
with TRL's on the same pairs, in the same order, from the same adapter, with the same schedule; each policy
then answers held-out prompts. Rows are appended to `--out` one training at a time; a run that was killed goes
on where it was, and a finished one only draws again. Other weights are another measurement: their rows are
kept beside the old ones, and only those of the present weights are shown. The whole takes some 15 CPU-minutes
on the starter, most of it TRL's and the answers'.
"""

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.evaluation import Evaluation
from benchmarks.frontier_plot import draw
from benchmarks.frontier_rows import LOSSES, SIDES, Key, Mean, Point, Row, RowFile, parity_table, points_table
from benchmarks.known_reward import Measurement, sampled_pairs
from benchmarks.sampler import Conversation, Sampler
from benchmarks.taste_rows import settings_text
from dpo_studio import starter
from dpo_studio.domain.chat import Message
from dpo_studio.domain.codec import to_json
from dpo_studio.domain.round import TrainSettings, preset_for
from dpo_studio.dpo.batches import TokenPair
from dpo_studio.dpo.evaluate import score_pairs
from dpo_studio.dpo.layouts import PREFIX_SHARED
from dpo_studio.dpo.logps import ResponseScorer
from dpo_studio.dpo.memory import MemoryBudget
from dpo_studio.dpo.trainer import Trainer
from dpo_studio.errors import BadInput
from dpo_studio.modeling.adapters import new_lora
from dpo_studio.modeling.base_model import load_base
from dpo_studio.tastes import get_taste

HELD_OUT = Path(starter.__file__).parent / "held_out_prompts.jsonl"
PLOT = Path("docs/img/frontier.png")
_SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": {"loss": "sigmoid"},
    "ipo": {"loss": "ipo", "length_normalised": True},
    "ipo-sum": {"loss": "ipo"},
}
_TRL_LOSSES = {"dpo": "sigmoid", "ipo": "ipo"}
"""What TRL has. Its ipo divides by length."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a training gave."""

    points: tuple[Point, ...]
    losses: tuple[float, ...]
    cpu_seconds: float


class Bench:
    """What all trainings of one process share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        """Raises BadInput when a held-out prompt is a labelled one, or the pairs make no full batches."""
        self._arguments = arguments
        self.sampler = Sampler(arguments.model)
        evaluation = Evaluation(arguments.prompts, "all", arguments.samples)
        self._labelled: list[Conversation] = [(Message("user", text),) for text in starter.seed_prompts()]
        evaluation.refuse_overlap(self._labelled)
        self.prompts = evaluation.name
        self.data = f"{arguments.pairs} pairs, seed {arguments.seed}, scale {arguments.scale:g}"
        taste = get_taste(arguments.taste)
        self._measurement = Measurement(self.sampler, evaluation.prompts, taste, arguments.samples)
        self._preset = replace(
            preset_for(self.sampler.num_parameters), epochs=arguments.epochs, seed=arguments.seed
        )
        if arguments.pairs % self._preset.batch_size:
            raise BadInput(
                f"pairs: expected a multiple of the batch size {self._preset.batch_size},"
                f" found {arguments.pairs}"
            )

    def base_key(self) -> Key:
        return Key(
            self._arguments.taste, "", 0.0, "base", "", "", self.sampler.base.model_sha256, self.prompts
        )

    def key(self, loss: str, beta: float, who: str) -> Key:
        return replace(
            self.base_key(),
            loss=loss,
            beta=beta,
            who=who,
            settings=settings_text(to_json(self._settings(loss, beta))),
            data=self.data,
        )

    def measure_base(self) -> Row:
        return Row(self.base_key(), (self._measurement.of_base(),), (), 0.0)

    def train(self, key: Key) -> Row:
        """Train and measure."""
        settings = self._settings(key.loss, key.beta)
        trained = self._train_ours(settings) if key.who == "ours" else self._train_trl(settings, key.loss)
        return Row(key, trained.points, trained.losses, trained.cpu_seconds)

    def _settings(self, loss: str, beta: float) -> TrainSettings:
        return replace(self._preset, beta=beta, **_SETTINGS[loss])

    @cached_property
    def _pairs(self) -> list[TokenPair]:
        asked = self._arguments
        return sampled_pairs(
            self.sampler,
            self._labelled,
            get_taste(asked.taste),
            asked.pairs,
            scale=asked.scale,
            seed=asked.seed,
        )

    @cached_property
    def _reference(self) -> Tensor:
        policy = self._fresh_policy(self._preset)
        with policy.disable_adapter():
            return score_pairs(ResponseScorer(policy), self._pairs, MemoryBudget(), layout=PREFIX_SHARED)

    def _fresh_policy(self, settings: TrainSettings) -> PeftModel:
        """An adapter that changes nothing yet, the same every time, on a base of its own."""
        return new_lora(self._fresh_base(), settings.lora_rank, settings.lora_alpha, settings.seed)

    def _fresh_base(self) -> Any:
        # TRL trains in float32, and so do we here.
        return load_base(self._arguments.model, dtype="float32").model

    def _train_ours(self, settings: TrainSettings) -> Trained:
        pairs, reference = self._pairs, self._reference
        policy = self._fresh_policy(settings)
        trainer = Trainer(ResponseScorer(policy), pairs, reference, settings, layout=PREFIX_SHARED)
        measured_at = checkpoints(trainer.num_steps, self._arguments.points)
        losses: list[float] = []
        points: list[Point] = []
        cpu_seconds, started = 0.0, time.process_time()
        for result in trainer.steps():
            cpu_seconds += time.process_time() - started
            losses.append(result.metrics["loss"])
            if result.step in measured_at:
                points.append(self._measurement.of_policy(policy, result.step))
            started = time.process_time()
        return Trained(tuple(points), tuple(losses), cpu_seconds)

    def _train_trl(self, settings: TrainSettings, loss: str) -> Trained:
        from benchmarks.trl_trainer import trl_steps

        policy = self._fresh_policy(settings)
        ours = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        model = self._fresh_base()
        # TRL's own first adapter is thrown away, but it is part of the key of its cached reference.
        torch.manual_seed(settings.seed)
        with tempfile.TemporaryDirectory() as folder, silenced():
            steps = trl_steps(
                model,
                self._pairs,
                settings,
                {name: p.detach().clone() for name, p in ours.items()},
                Path(folder),
                loss_type=[_TRL_LOSSES[loss]],
                gradient_checkpointing=False,
                precompute_ref_log_probs=True,
            )
        copy_adapter(model, ours)
        point = self._measurement.of_policy(policy, len(steps))
        return Trained((point,), tuple(step.loss for step in steps), sum(step.cpu_seconds for step in steps))


def main() -> None:
    arguments = parse_arguments()
    bench, file = Bench(arguments), RowFile(arguments.out)
    rows = list(rows_of(bench, file, arguments))
    say("\n".join(["", *points_table(rows), "", *parity_table(rows), ""]))
    draw(rows, arguments.plot, title=title_of(arguments, bench), reward=f"mean reward ({arguments.taste})")
    say(f"Weights {weights_of(bench)}; {bench.data}; prompts {bench.prompts}; drawn as {arguments.plot}")


def rows_of(bench: Bench, file: RowFile, arguments: argparse.Namespace) -> Iterator[Row]:
    """The rows that the arguments ask for: those of the file, the others measured now and added to it."""
    keys = [
        bench.key(loss, beta, who)
        for who in arguments.who
        for loss in arguments.losses
        if who != "trl" or loss in _TRL_LOSSES
        for beta in arguments.betas
    ]
    for key in [bench.base_key(), *keys]:
        row = file.get(key)
        if row is None and not arguments.known_only:
            row = bench.measure_base() if key.who == "base" else bench.train(key)
            file.add(row)
            tell(row)
        if row is not None:
            yield row


def tell(row: Row) -> None:
    """One line as soon as a row is there."""
    key = row.key
    last = row.points[-1]
    say(
        f"{SIDES[key.who]:5}{LOSSES.get(key.loss, ''):16}β {key.beta:<6g}"
        f"reward {Mean.of(last.rewards).show(3)}  KL {Mean.of(last.kls).show(2)}  {row.cpu_seconds:.0f} CPU-s"
    )


def checkpoints(num_steps: int, num_points: int) -> set[int]:
    """Steps after which to measure: evenly spaced, the last one always among them."""
    return {round(num_steps * part / num_points) for part in range(1, num_points + 1)} - {0}


def copy_adapter(model: Any, parameters: dict[str, torch.nn.Parameter]) -> None:
    """Copy what `model`, adapted in place, has learnt into `parameters`, by their names in our wrapper."""
    learnt = {f"base_model.model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    assert set(learnt) == set(parameters), "both sides must train the same parameters"
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(learnt[name])


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """TRL reports every step and every cache to the terminal."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def title_of(arguments: argparse.Namespace, bench: Bench) -> str:
    return (
        f"Reward against KL, {arguments.pairs} pairs by a known reward; weights {weights_of(bench)}\n"
        "bars: 95 %; small dots: our trainings on the way"
    )


def weights_of(bench: Bench) -> str:
    return bench.sampler.base.model_sha256.removeprefix("sha256:")[:12]


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", default="starter", help="as `dpo-studio serve` takes it")
    add("--taste", default="formal", help="whose score is the reward; several joined by + are added up")
    add("--betas", type=numbers, default=numbers("0.05,0.1,0.3,1,3"))
    add("--losses", type=names_of(LOSSES), default=["dpo", "ipo", "ipo-sum"], help=f"of {', '.join(LOSSES)}")
    add("--who", type=names_of(("ours", "trl")), default=["ours", "trl"], help="ours, trl")
    add("--pairs", type=int, default=200, help="labelled pairs of base's answers")
    add("--scale", type=float, default=10.0, help="of the reward in the labels' Bradley–Terry model")
    add("--epochs", type=int, default=2)
    add("--points", type=int, default=2, help="measurements along each of our trainings, the end included")
    add("--prompts", type=Path, default=HELD_OUT, help="held-out prompts, JSON lines: messages, accept")
    add("--samples", type=int, default=1, help="answers to each held-out prompt")
    add("--seed", type=int, default=0, help="of samples, labels and training")
    add("--out", type=Path, help="JSON lines; trainings that are there are skipped")
    add("--plot", type=Path, default=PLOT)
    add("--known-only", action="store_true", help="tables and plot of what --out holds; train nothing")
    return parser.parse_args(words)


def numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def names_of(known: Sequence[str] | dict[str, str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.split(",")
        if not set(found) <= set(known):
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, found {text!r}")
        return found

    return names


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
