"""Pairs of sampled answers waiting for a voter: one a labeling prompt and lap, sampled when first wanted.

Base's laps are kept in files, so that ten tastes and four numbers of votes judge the same few thousand
answers instead of each sampling its own; rows of one table are therefore not independent of one another. A
lap is decided by the weights, the sampling and its number alone, so two processes may share the folder.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sampler import Conversation, Sampler
from dpo_studio.domain.chat import BASE
from dpo_studio.domain.preference import SampledText
from dpo_studio.files import read_json, sha256_of_bytes, write_json

_SEEDS_A_LAP = 10_000
_FIRST_SEED = 1_000_000_000
"""Far from the seeds of the evaluation."""
_CHUNK = 60
"""Prompts sampled at once from a version that is not base: its pool is used once, and seldom to the end."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers of one version to one prompt."""

    messages: Conversation
    a: SampledText
    b: SampledText


class AnswerPool:
    """Comparisons of one version. `prompts`: the labeling prompts, at most 10 000."""

    def __init__(
        self, sampler: Sampler, version: str, prompts: Sequence[Conversation], *, folder: Path, seed: int = 0
    ) -> None:
        """`version` must be loaded. Laps of base are read from and written to `folder`."""
        assert len(prompts) <= _SEEDS_A_LAP
        self._sampler = sampler
        self._version = version
        self._prompts = list(prompts)
        self._folder = folder
        self._seed = seed
        self._laps: dict[int, list[Comparison]] = {}

    def comparisons(self, rng: random.Random) -> Iterator[Comparison]:
        """Without end: every prompt once in an order drawn from `rng`, then every prompt again, and so on."""
        lap = 0
        while True:
            order = rng.sample(range(len(self._prompts)), len(self._prompts))
            if self._version == BASE:
                whole = self._base_lap(lap)
                yield from (whole[index] for index in order)
            else:
                for start in range(0, len(order), _CHUNK):
                    yield from self._draw(lap, order[start : start + _CHUNK])
            lap += 1

    def _base_lap(self, lap: int) -> list[Comparison]:
        if lap not in self._laps:
            path = self._folder / f"{self._name()}-{lap}.json"
            if not path.exists():
                drawn = self._draw(lap, range(len(self._prompts)))
                self._folder.mkdir(parents=True, exist_ok=True)
                write_json(path, [[_plain(one.a), _plain(one.b)] for one in drawn])
            self._laps[lap] = [
                Comparison(messages, _sampled(a), _sampled(b))
                for messages, (a, b) in zip(self._prompts, read_json(path), strict=True)
            ]
        return self._laps[lap]

    def _name(self) -> str:
        """Other weights or other prompts are another pool."""
        hashes = (self._sampler.base.model_sha256, sha256_of_bytes(repr(self._prompts).encode()))
        weights, prompts = (text.removeprefix("sha256:")[:12] for text in hashes)
        return f"{weights}-{prompts}-{self._seed}"

    def _draw(self, lap: int, indices: Sequence[int]) -> list[Comparison]:
        seed = _FIRST_SEED + _SEEDS_A_LAP * (100 * self._seed + lap)
        asked = [self._prompts[index] for index in indices]
        answered = self._sampler.answers(asked, self._version, seed=seed, n=2)
        return [
            Comparison(
                messages,
                SampledText(a.text, a.token_ids, self._version),
                SampledText(b.text, b.token_ids, self._version),
            )
            for messages, (a, b) in zip(asked, answered, strict=True)
        ]


def _plain(text: SampledText) -> list[object]:
    return [text.text, list(text.token_ids or ())]


def _sampled(plain: list[object]) -> SampledText:
    text, ids = plain
    assert isinstance(text, str) and isinstance(ids, list)
    return SampledText(text, tuple(ids), BASE)
