"""What a version answers to prompts that nobody voted on: its taste, and whether it is still sensible.

The prompts are hand-written, each with the subjects that may answer it. Only single-turn prompts are asked,
in scope (taste, sensible, refused) and out of scope (handled). `dpo_studio.starter.checker` judges them:

- sensible: on topic, strictly; one sentence on a foreign subject makes an answer off topic.
- grammatical: no sentence that the corpus cannot make, no invented word, no repeat. A lower bound: most novel
  sentences are good ones.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from benchmarks.intervals import clustered_interval
from benchmarks.sampler import Conversation, Sampler
from dpo_studio import starter
from dpo_studio.domain.chat import Completion, Message
from dpo_studio.errors import BadInput
from dpo_studio.rounds.split import normalised_prompt
from dpo_studio.starter.checker import Checker, Verdict
from dpo_studio.starter.library import OUTSIDE, read_topics
from dpo_studio.tastes import Taste

EVALUATION = Path(starter.__file__).parent / "eval_prompts.jsonl"
Half = Literal["tuning", "reporting", "all"]
_SEED = 0
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Figures:
    """Shares of the answers of one version; `rate`, `words`, `sensible`, `refused` of those in scope."""

    rate: float
    low: float
    high: float
    """95 % interval of `rate`; answers to one prompt count as alike as they are."""
    words: float
    sensible: float
    grammatical: float
    outside_handled: float
    refused: float
    ended: float
    num_answers: int


class Evaluation:
    """Prompts, the checker, and one version's answers at a time."""

    def __init__(self, file: Path, half: Half, num_samples: int) -> None:
        """Raises BadInput when the file lacks prompts in scope or out of it, or repeats a labeling prompt."""
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        single = [row for row in rows if not row.get("second") and len(row["messages"]) == 1]
        self._items = [(row["messages"][0], tuple(row["accept"])) for row in take_half(single, half)]
        self._inside = [OUTSIDE not in accept for _, accept in self._items]
        if not any(self._inside) or all(self._inside):
            raise BadInput(f"{file}: expected prompts in scope and out of it, found one kind only")
        self._num_samples = num_samples
        self._checker = Checker(read_topics())
        self.prompts: list[Conversation] = [(Message("user", text),) for text, _ in self._items]
        self.name = f"{file.stem}:{half}:{num_samples}"

    def refuse_overlap(self, labeling: Sequence[Conversation]) -> None:
        """Raises BadInput when a prompt is also among the labeling prompts."""
        voted = {normalised_prompt(messages) for messages in labeling}
        both = [messages[-1].content for messages in self.prompts if normalised_prompt(messages) in voted]
        if both:
            raise BadInput(
                f"prompts: expected none that is labeled, found {both[0]!r} and {len(both) - 1} more"
            )

    def ask(self, sampler: Sampler, version: str) -> list[list[Completion]]:
        """Answers of a loaded version, always with the same seeds."""
        return sampler.answers(self.prompts, version, seed=_SEED, n=self._num_samples)

    def judge(self, answers: Sequence[Sequence[Completion]], taste: Taste) -> Figures:
        """The figures of what `ask` returned."""
        inside: list[list[Verdict]] = []
        outside: list[list[Verdict]] = []
        for (_, accept), is_inside, group in zip(self._items, self._inside, answers, strict=True):
            verdicts = [self._checker.judge(answer.text, accept) for answer in group]
            (inside if is_inside else outside).append(verdicts)
        texts = [
            [answer.text for answer in group]
            for is_inside, group in zip(self._inside, answers, strict=True)
            if is_inside
        ]
        shows = [[bool(text.strip()) and taste.shows(text) for text in group] for group in texts]
        low, high = clustered_interval(shows)
        flat = [verdict for group in inside for verdict in group]
        every = [*flat, *(verdict for group in outside for verdict in group)]
        return Figures(
            rate=_share([hit for group in shows for hit in group]),
            low=low,
            high=high,
            words=sum(len(text.split()) for group in texts for text in group) / len(flat),
            sensible=_share([verdict.on_topic for verdict in flat]),
            grammatical=_share([not (v.novel or v.invented or v.looping) for v in every]),
            outside_handled=_share([verdict.on_topic for group in outside for verdict in group]),
            refused=_share([OUTSIDE in verdict.owners for verdict in flat]),
            ended=_share([answer.finish_reason == "stop" for group in answers for answer in group]),
            num_answers=len(every),
        )


def take_half(rows: Sequence[_Row], half: Half) -> list[_Row]:
    """Even places are for tuning, odd ones for reporting."""
    return list(rows) if half == "all" else list(rows[half == "reporting" :: 2])


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)
