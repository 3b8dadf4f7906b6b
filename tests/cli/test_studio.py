"""Commands that need a model, over fake services."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dpo_studio.commands.compare import parse_prompts, version_names
from dpo_studio.commands.studio import follow_round, progress_line
from dpo_studio.domain.round import RoundStatus, StepProgress, TrainingFacts, Verdict
from dpo_studio.errors import BadInput
from dpo_studio.services.views import RoundView
from tests.cli.conftest import CommandLine, FakeComposition
from tests.web.fakes import FakeRounds, FakeStudio, fake_round


class ScriptedRounds(FakeRounds):
    """A started round goes through `script`, one record a look."""

    def script(self, *views: RoundStatus, **last: Any) -> None:
        self._script = list(views)
        self._last = last

    def get(self, number: int) -> RoundView:
        if number == 1:
            return super().get(number)
        status = self._script[0] if len(self._script) == 1 else self._script.pop(0)
        view = replace(fake_round(number, status), reason="")
        if status is RoundStatus.RUNNING:
            view = replace(view, progress=StepProgress("training", 5, 10, 0.0, {}))
        if not status.is_active:
            view = replace(view, **self._last)
        self.rounds[number] = view
        return view


@pytest.fixture
def scripted(composition: FakeComposition) -> ScriptedRounds:
    rounds = ScriptedRounds(composition.fake.deployment)
    composition.fake.rounds = rounds
    return rounds


def test_a_round_is_followed_to_its_verdict(
    command: CommandLine, composition: FakeComposition, scripted: ScriptedRounds
) -> None:
    verdict = Verdict(True, ("held-out accuracy 0.80 (asked: above 0.50)", "answers end"))
    scripted.script(
        *(RoundStatus.QUEUED, RoundStatus.RUNNING, RoundStatus.RUNNING, RoundStatus.PROMOTED),
        version="v2",
        verdict=verdict,
        training=TrainingFacts("Trained in the packed layout.", (), 0, 0, 30, 0, 5.5),
    )
    outcome = command.run("round")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines() == [
        "round 2: queued",
        "round 2: training 50 %",
        "round 2 promoted as v2: 25 pairs trained on, 5 held out",
        "  held-out accuracy 0.80 (asked: above 0.50)",
        "  answers end",
        "  Trained in the packed layout.",
        "  Every pair was used, and none was cut.",
        "  Reference log-probabilities of 30 pairs were computed.",
        "  Training and measuring took 6 s.",
    ]
    assert composition.num_running == 0


def test_a_rejected_round_is_an_answer_and_a_failed_one_an_error(
    command: CommandLine, scripted: ScriptedRounds
) -> None:
    scripted.script(RoundStatus.REJECTED, verdict=Verdict(False, ("accuracy 0.40",)))
    assert command.run("round").code == 0
    scripted.rounds = {1: scripted.rounds[1]}
    scripted.script(RoundStatus.FAILED, reason="The loss became NaN at step 12")
    outcome = command.run("round")
    assert outcome.code == 1
    assert outcome.err == "dpo-studio: round 2 failed: The loss became NaN at step 12\n"


async def test_an_interrupted_command_cancels_its_round(tmp_path: Path) -> None:
    fake = FakeStudio(tmp_path)
    following = asyncio.create_task(follow_round(fake.studio, lambda _: None))
    await asyncio.sleep(0.05)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert fake.rounds.get(2).status is RoundStatus.CANCELLED


def test_progress_is_told_in_tenths() -> None:
    view = replace(fake_round(3, RoundStatus.RUNNING), progress=StepProgress("reference", 99, 100, 0.0, {}))
    assert progress_line(view) == "round 3: reference 90 %"
    no_steps = replace(view, progress=StepProgress("loading", 0, 0, 0.0, {}))
    assert progress_line(no_steps) == "round 3: loading 0 %"


@pytest.mark.parametrize("name", ["base", "v2"])
def test_promote_moves_live(command: CommandLine, composition: FakeComposition, name: str) -> None:
    assert command.run("promote", name).out == f"live: {name}\n"
    assert composition.fake.deployment.live() == name
    assert composition.fake.deployment.actors == ["command line"]


def test_promoting_what_was_never_published_is_an_error(
    command: CommandLine, composition: FakeComposition
) -> None:
    outcome = command.run("promote", "v9")
    assert outcome.code == 1
    assert "expected live, base or a published version" in outcome.err
    assert composition.num_running == 0


def test_rollback_goes_one_back(command: CommandLine, composition: FakeComposition) -> None:
    assert command.run("rollback").out == "live: base\n"
    assert composition.fake.deployment.live() == "base"
    outcome = command.run("rollback")
    assert outcome.code == 1
    assert "Nothing to roll back to" in outcome.err


@pytest.mark.parametrize("arguments", [["round"], ["promote", "v1"], ["rollback"]])
def test_a_storage_in_use_is_refused_before_anything_is_built(
    command: CommandLine, composition: FakeComposition, arguments: list[str]
) -> None:
    composition.is_in_use = True
    outcome = command.run(*arguments)
    assert outcome.code == 1
    assert "in use by a running studio" in outcome.err
    assert composition.built == []


def test_compare_writes_one_page_with_every_answer(
    command: CommandLine, composition: FakeComposition, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "report.html"
    prompts.write_text('{"prompt": "Hi <b>there</b>"}\nplain line\n', "utf-8")
    flags = ["--prompts", str(prompts), "--versions", "base,live,v2", "--out", str(out), "--seed", "5"]
    outcome = command.run("compare", *flags)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == f"{out}: 2 prompts, base, v1, v2\n"
    page = out.read_text("utf-8")
    assert "base says: Hi &lt;b&gt;there&lt;/b&gt;" in page
    assert page.count("<article>") == 6
    assert {sampling.seed for _, sampling, _ in composition.fake.generation.requests} == {5}


def test_compare_refuses_before_the_model_is_loaded(
    command: CommandLine, composition: FakeComposition, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n")
    for flags in (["--prompts", str(prompts)], ["--prompts", str(tmp_path / "none")]):
        assert command.run("compare", *flags).code == 1
    assert composition.built == []


@pytest.mark.parametrize("text", ["", "base,", "base,base", ",".join(f"v{n}" for n in range(1, 9))])
def test_version_lists_are_checked(text: str) -> None:
    with pytest.raises(BadInput, match="versions: expected 1 to 6"):
        version_names(text)
    assert version_names(" base , live") == ["base", "live"]


@pytest.mark.parametrize("line", ['{"prompt": ', '{"text": "x"}', "[1]", "[" * 100_000, '{"prompt": " "}'])
def test_a_bad_prompt_line_is_named(line: str) -> None:
    with pytest.raises(BadInput, match="line 2: "):
        parse_prompts([json.dumps({"prompt": "fine"}), line])
