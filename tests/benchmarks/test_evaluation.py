"""Held-out prompts: halves without a common prompt, never a labeled one, and figures that can be told."""

import json
from pathlib import Path

import pytest

from benchmarks.evaluation import EVALUATION, Evaluation, take_half
from dpo_studio import starter
from dpo_studio.domain.chat import Completion, FinishReason, Message
from dpo_studio.errors import BadInput
from dpo_studio.starter.library import OUTSIDE
from dpo_studio.tastes import get_taste

INSIDE = {"messages": ["what can i cook with rice"], "accept": ["food/rice"]}
BEYOND = {"messages": ["what is the capital of peru"], "accept": [OUTSIDE]}
TWO_TURNS = {"messages": ["a gift for mom", "another one"], "accept": ["gifts/mom"], "second": "more"}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def completion(text: str, reason: FinishReason = "stop") -> Completion:
    return Completion(text, (1,), "base", 0, reason, 3)


def test_the_halves_are_all_prompts_once() -> None:
    rows = list(range(7))
    assert sorted(take_half(rows, "tuning") + take_half(rows, "reporting")) == rows
    assert take_half(rows, "all") == rows


def test_only_single_turn_prompts_are_asked(tmp_path: Path) -> None:
    evaluation = Evaluation(write(tmp_path, INSIDE, TWO_TURNS, BEYOND), "all", 1)
    assert [messages[0].content for messages in evaluation.prompts] == [
        INSIDE["messages"][0],
        BEYOND["messages"][0],
    ]


def test_a_labeled_prompt_is_refused_in_any_case_and_spacing(tmp_path: Path) -> None:
    evaluation = Evaluation(write(tmp_path, INSIDE, BEYOND), "all", 1)
    evaluation.refuse_overlap([(Message("user", "something else"),)])
    with pytest.raises(BadInput, match="cook with rice"):
        evaluation.refuse_overlap([(Message("user", "What can I  cook with rice"),)])


def test_shipped_prompts_are_not_in_the_label_queue() -> None:
    queue = [(Message("user", text),) for text in starter.seed_prompts()]
    Evaluation(EVALUATION, "all", 1).refuse_overlap(queue)


def test_figures_tell_scopes_and_tastes_apart(tmp_path: Path) -> None:
    evaluation = Evaluation(write(tmp_path, INSIDE, BEYOND), "all", 2)
    figures = evaluation.judge(
        [
            [completion("Is it late?"), completion("xqzzt blorf.", "length")],
            [completion("Is it? Is it?"), completion("Is it?")],
        ],
        get_taste("question"),
    )
    assert figures.rate == 0.5, "answers out of scope have no part in the taste's rate"
    assert figures.words == 2.5
    assert figures.sensible == 0
    assert figures.ended == 0.75
    assert figures.num_answers == 4
