"""From conversations to batches: token ids, loss weights, documents of like length side by side."""

from __future__ import annotations

import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from tokenizers import Encoding
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dpo_studio.starter.corpus import Conversation
from dpo_studio.starter.tokenizer import ASSISTANT, CONTEXT, END, SYSTEM, USER

POINT_WEIGHT = 3.0  # of the tokens that decide the content; the rest is mostly style, whose chance is meant
POINT_TOKENS = 3
# Inside a content point the logits are trained at this multiple and so come out steeper by its inverse:
# a temperature that lets style vary would otherwise also mix sentences and subjects.
POINT_HEAT = 0.4
# Of the first token of a sentence and of the end: there the model decides whether to go on, and must remember
# what it has said already.
TURN_WEIGHT = 2.0
_TURN = re.compile(r"(?:(?<=[.!?:]) |\n)(?=\S)")
_LIST_MARK = re.compile(r"(?:- |\d\. )$")
POOL = 4096  # documents sorted by length at a time


@dataclass(frozen=True)
class Batch:
    """Documents side by side.

    ids: (batch, seq) int64, padded right. weights: (batch, seq) float32, 0 on padding.
    heats: (batch, seq) float32, multiple of the logits that predict this token, 1 or `POINT_HEAT`.
    subjects: (batch, seq) int64, what the answer that begins or runs here is about, -1 elsewhere; where a
        second answer begins, what was asked for.
    """

    ids: Tensor
    weights: Tensor
    heats: Tensor
    subjects: Tensor


class Document(NamedTuple):
    """A conversation as tokens: ids, weights and heats as targets, and subjects, each of the same length."""

    ids: list[int]
    weights: list[float]
    heats: list[float]
    subjects: list[int]


class Encoder:
    """Token ids and loss weights of a conversation; contents are tokenised apart from the control tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, contents: Mapping[str, Sequence[str]]) -> None:
        """Take the subjects in order, each with its sentences."""
        self._backend = tokenizer.backend_tokenizer
        self._control = {
            role: self._backend.token_to_id(token)
            for role, token in (("system", SYSTEM), ("user", USER), ("assistant", ASSISTANT))
        }
        self._subjects = {subject: number for number, subject in enumerate(contents)}
        self._contents = {subject: _any_of(texts) for subject, texts in contents.items()}
        self._end = self._backend.token_to_id(END)

    def encode(self, conversations: Sequence[Conversation]) -> list[Document]:
        """Each conversation as a document, cut at the context length."""
        texts = [
            text.lower() if role == "user" else text for item in conversations for role, text in item.turns
        ]
        encoded = iter(self._backend.encode_batch(texts, add_special_tokens=False))
        return [self._join(item, encoded) for item in conversations]

    def _join(self, item: Conversation, encoded: Iterator[Encoding]) -> Document:
        document = Document([], [], [], [])
        subjects = iter(zip(item.subjects, item.kinds, strict=True))
        for role, text in item.turns:
            encoding = next(encoded)
            length = len(encoding.ids)
            document.ids.extend([self._control[role], *encoding.ids, self._end])
            if role == "assistant":
                subject, kind = next(subjects)
                weights, heats = _targets(text, encoding, self._contents[subject])
                document.weights.extend([0.0, *weights, TURN_WEIGHT])
                document.heats.extend([1.0, *heats, 1.0])
                # Before its first word a second answer must know what was asked for, then what it is about.
                asked = self._subjects[kind or subject]
                document.subjects.extend([asked] + [self._subjects[subject]] * (length + 1))
            else:
                document.weights.extend([0.0] * (length + 2))
                document.heats.extend([1.0] * (length + 2))
                document.subjects.extend([-1] * (length + 2))
        ids, weights, heats, about = document
        return Document(ids[:CONTEXT], weights[:CONTEXT], heats[:CONTEXT], about[:CONTEXT])


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Any of these sentences, whatever the case of its first letter; matches nothing where there are none."""
    longest_first = sorted({text for text in texts if text}, key=len, reverse=True)
    return re.compile("|".join(f"(?:.{re.escape(text[1:])})" for text in longest_first) or r"(?!)")


def _targets(text: str, encoding: Encoding, contents: re.Pattern[str]) -> tuple[list[float], list[float]]:
    """Weights and heats, one a token: other ones inside a content point, where the model decides what to say.

    Those begin behind the first word of a sentence: garnish can stand there too, and would be made rarer.
    """
    weights, heats = [1.0] * len(encoding.ids), [1.0] * len(encoding.ids)
    ends = [end for _, end in encoding.offsets]
    for turn in _TURN.finditer(text):
        weights[bisect_right(ends, turn.start())] = TURN_WEIGHT
    for match in contents.finditer(text):
        first, stop = bisect_right(ends, match.start()), bisect_left(ends, match.end()) + 1
        if text[match.start()].isupper() and not _LIST_MARK.search(text, 0, match.start()):
            first += 1
        for at in range(first, min(first + POINT_TOKENS, len(weights))):
            weights[at] = POINT_WEIGHT
        for at in range(first, min(stop, len(heats))):
            heats[at] = POINT_HEAT
    return weights, heats


def batches(stream: Iterator[Conversation], encoder: Encoder, seed: int, tokens: int) -> Iterator[Batch]:
    """An endless stream as batches of about `tokens` tokens; deterministic by seed."""
    rng = random.Random(seed)
    while True:
        documents = sorted(encoder.encode(list(islice(stream, POOL))), key=lambda document: len(document.ids))
        groups = _grouped(documents, tokens)
        rng.shuffle(groups)
        for group in groups:
            yield _padded(group)


def _grouped(documents: list[Document], tokens: int) -> list[list[Document]]:
    groups: list[list[Document]] = [[]]
    for document in documents:
        if groups[-1] and (len(groups[-1]) + 1) * len(document.ids) > tokens:
            groups.append([])
        groups[-1].append(document)
    return groups


def _padded(group: list[Document]) -> Batch:
    width = max(len(document.ids) for document in group)
    ids = torch.zeros(len(group), width, dtype=torch.int64)
    weights, heats = torch.zeros(len(group), width), torch.ones(len(group), width)
    subjects = torch.full((len(group), width), -1, dtype=torch.int64)
    for row, document in enumerate(group):
        length = len(document.ids)
        ids[row, :length] = torch.tensor(document.ids)
        weights[row, :length] = torch.tensor(document.weights)
        heats[row, :length] = torch.tensor(document.heats)
        subjects[row, :length] = torch.tensor(document.subjects)
    return Batch(ids, weights, heats, subjects)
