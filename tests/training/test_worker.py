"""The worker, run in this process: a round's whole promise, and every refusal as one sentence."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dpo_studio.domain.round import RoundReport, TrainSettings
from dpo_studio.files import sha256_of_tree
from dpo_studio.modeling.adapters import check_adapter_folder
from dpo_studio.modeling.base_model import load_base
from dpo_studio.paths import RoundPaths
from dpo_studio.training.attempt import EXIT_CANCELLED, EXIT_FAILED, EXIT_OK
from dpo_studio.training.drift import BUDGET
from dpo_studio.training.job import read_assignment
from dpo_studio.training.worker import main
from tests.training.rounds import make_round, read_progress, read_report, row, rows

pytestmark = pytest.mark.usefixtures("signals")
QUICK = TrainSettings(epochs=2, batch_size=4, learning_rate=1e-2, lora_rank=4)
# Never comes near the drift guard.
GENTLE = dataclasses.replace(QUICK, learning_rate=1e-3)


def train(tmp_path: Path, model: Path, **options: Any) -> tuple[RoundPaths, RoundReport]:
    """A round that must succeed."""
    paths = make_round(tmp_path, model, **{"settings": QUICK, **options})
    code = main([str(paths.root)])
    report = read_report(paths)
    assert (code, report.ok, report.reason) == (EXIT_OK, True, "")
    return paths, report


def refuse(paths: RoundPaths) -> str:
    """The reason of a round that must fail without an adapter."""
    assert main([str(paths.root)]) == EXIT_FAILED
    report = read_report(paths)
    assert not report.ok
    assert not paths.adapter.exists()
    assert "Traceback" not in report.reason
    return report.reason


def test_a_round_leaves_a_plain_adapter_its_numbers_and_its_steps(tmp_path: Path, model: Path) -> None:
    paths, report = train(
        tmp_path,
        model,
        train=rows(10),
        heldout=rows(3, 100),
        probe_prompts=["Hello", "What now?"],
        # Gentle: this one must not come near the drift guard.
        settings=dataclasses.replace(QUICK, learning_rate=1e-3),
    )
    assert (report.num_train, report.num_heldout, report.num_steps) == (10, 3, 6)
    assert report.adapter_sha256 == sha256_of_tree(paths.adapter)
    assert sorted(report.adapter_sha256) == ["adapter_config.json", "adapter_model.safetensors"]
    check_adapter_folder(paths.adapter)
    assert len(report.heldout_margins) == 3
    assert report.live_margins == ()
    assert report.metrics["heldout/rewards/margins"] == pytest.approx(sum(report.heldout_margins) / 3)
    assert report.base_probe is not None and report.base_probe.kl_per_token == 0.0
    assert report.candidate_probe is not None and report.candidate_probe.num_samples == 4
    steps = [p for p in read_progress(paths) if p.metrics]
    assert [p.step for p in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[0].metrics["loss"] == math.log(2)
    assert [p.step for p in steps if "heldout/loss" in p.metrics] == [3, 6]
    assert {p.phase for p in read_progress(paths)} == {
        "loading",
        "reference",
        "training",
        "evaluating",
        "done",
    }


# peft 0.21 asks for a name that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_the_saved_adapter_is_the_one_that_was_measured(tmp_path: Path, model: Path) -> None:
    """Load it with plain peft and recompute a held-out margin from full logits."""
    heldout = [row(1, "", "", chosen_ids=[30, 31, 3], rejected_ids=[40, 41, 42, 3])]
    heldout[0]["chosen"][0]["content"] = heldout[0]["rejected"][0]["content"] = "x"
    paths, report = train(tmp_path, model, train=rows(8), heldout=heldout)
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    messages = read_assignment(paths).heldout[0].messages
    prompt = load_base(str(model), device="cpu").chat_format().prompt_ids(messages)

    def logp(scored: Any, response: list[int]) -> float:
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            logps = scored(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return float(logps.gather(1, ids[0, 1:, None])[-len(response) :].sum())

    reference = logp(base, [30, 31, 3]) - logp(base, [40, 41, 42, 3])
    tuned = PeftModel.from_pretrained(base, paths.adapter).eval()
    margin = QUICK.beta * (logp(tuned, [30, 31, 3]) - logp(tuned, [40, 41, 42, 3]) - reference)
    assert report.heldout_margins[0] == pytest.approx(margin, abs=1e-4)
    assert abs(margin) > 1e-2, "training must matter, or this test shows nothing"


def test_it_learns_the_preference_and_carries_it_to_unseen_prompts(tmp_path: Path, model: Path) -> None:
    settings = dataclasses.replace(GENTLE, epochs=20)
    _, report = train(tmp_path, model, train=rows(8), heldout=rows(6, 100), settings=settings)
    assert report.metrics["rewards/accuracies"] == 1.0
    assert report.metrics["heldout/rewards/accuracies"] == 1.0


def test_a_training_that_would_break_the_model_stops_while_it_is_healthy(tmp_path: Path, model: Path) -> None:
    settings = dataclasses.replace(QUICK, epochs=60, learning_rate=1e-3)
    paths, report = train(tmp_path, model, train=rows(8), heldout=rows(3, 100), settings=settings)
    steps = [p for p in read_progress(paths) if p.metrics]
    drifts = {p.step: p.metrics["kl_per_token"] for p in steps if "kl_per_token" in p.metrics}
    *healthy, last = drifts.values()
    assert len(steps) < 120
    assert last > BUDGET >= max(healthy)
    assert list(drifts)[-2] <= report.num_steps < list(drifts)[-1]
    assert report.metrics["planned_steps"] == 120
    assert report.metrics["heldout/rewards/margins"] == pytest.approx(sum(report.heldout_margins) / 3)


def test_the_same_seed_gives_the_same_files(tmp_path: Path, model: Path) -> None:
    first = train(tmp_path / "a", model)[1].adapter_sha256
    again = train(tmp_path / "b", model)[1].adapter_sha256
    other = train(tmp_path / "c", model, settings=dataclasses.replace(QUICK, seed=1))[1].adapter_sha256
    assert first == again
    assert first["adapter_model.safetensors"] != other["adapter_model.safetensors"]


def test_the_live_version_is_measured_on_the_same_pairs(tmp_path: Path, model: Path) -> None:
    live, _ = train(tmp_path / "live", model, settings=dataclasses.replace(QUICK, epochs=6))
    heldout = rows(4, 100)
    _, plain = train(tmp_path / "plain", model, heldout=heldout)
    _, report = train(tmp_path / "next", model, heldout=heldout, live_adapter=str(live.adapter))
    assert len(report.live_margins) == 4
    assert min(report.live_margins) > 0
    assert report.metrics["live/rewards/accuracies"] == 1.0
    # Loading and unloading another adapter first must leave no trace in the training.
    assert report.adapter_sha256 == plain.adapter_sha256
    assert report.heldout_margins == plain.heldout_margins


def test_a_round_may_continue_from_the_live_adapter(tmp_path: Path, model: Path) -> None:
    live, _ = train(tmp_path / "live", model, settings=dataclasses.replace(QUICK, epochs=6))
    settings = dataclasses.replace(QUICK, start_from="live", epochs=1, learning_rate=1e-9)
    options = {"settings": settings, "start_adapter": str(live.adapter), "live_adapter": str(live.adapter)}
    paths, report = train(tmp_path / "next", model, heldout=rows(4, 100), **options)
    before = load_file(live.adapter / "adapter_model.safetensors")
    after = load_file(paths.adapter / "adapter_model.safetensors")
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    # Against base it starts where live is; the first loss is far below ln 2.
    assert report.heldout_margins == pytest.approx(report.live_margins, abs=1e-3)
    assert read_steps(paths)[0]["loss"] < 0.5


def test_the_start_may_be_the_reference(tmp_path: Path, model: Path) -> None:
    live, _ = train(tmp_path / "live", model)
    settings = dataclasses.replace(QUICK, start_from="live", reference="start")
    options = {"settings": settings, "start_adapter": str(live.adapter), "live_adapter": str(live.adapter)}
    paths, report = train(tmp_path / "next", model, heldout=rows(4, 100), **options)
    assert read_steps(paths)[0]["loss"] == math.log(2)
    assert sum(report.heldout_margins) > sum(report.live_margins), "margins stay relative to base"


def read_steps(paths: RoundPaths) -> list[dict[str, float]]:
    return [p.metrics for p in read_progress(paths) if p.metrics]


def test_what_was_cut_and_dropped_is_counted(tmp_path: Path, model: Path) -> None:
    bad = [row(50, "same", "same"), row(51, "", "no")]
    _, report = train(
        tmp_path,
        model,
        train=[*rows(6), *bad, row(52, "word " * 80, "other " * 80)],
        heldout=[row(53, "same", "same")],
        settings=dataclasses.replace(QUICK, max_length=120),
    )
    assert (report.num_train, report.num_heldout) == (7, 0)
    assert (report.num_dropped, report.num_truncated) == (3, 1)


def test_other_base_weights_are_refused(tmp_path: Path, model: Path) -> None:
    reason = refuse(make_round(tmp_path, model, model_sha256="sha256:00"))
    assert "weights sha256:00" in reason


def test_a_model_that_is_gone_is_refused(tmp_path: Path, model: Path) -> None:
    moved = shutil.copytree(model, tmp_path / "model")
    paths = make_round(tmp_path / "round", moved)
    shutil.rmtree(moved)
    assert "model: expected" in refuse(paths)


def test_numbers_that_break_end_the_round_with_a_sentence(tmp_path: Path, model: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "model")
    weights = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        weights.get_input_embeddings().weight.fill_(math.nan)
    weights.save_pretrained(broken)
    assert "finite" in refuse(make_round(tmp_path / "round", broken))


def test_a_cancel_file_ends_the_round_without_an_adapter(tmp_path: Path, model: Path) -> None:
    paths = make_round(tmp_path, model)
    paths.cancel.touch()
    assert main([str(paths.root)]) == EXIT_CANCELLED
    assert read_report(paths).reason == "The round was cancelled"
    assert not paths.adapter.exists()


def test_a_cancelled_round_loads_no_model(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled while torch was loading, a worker once went on to read the weights before it looked."""
    monkeypatch.setattr("dpo_studio.training.attempt.load_base", lambda *_, **__: pytest.fail("loaded"))
    paths = make_round(tmp_path, model)
    paths.cancel.touch()
    assert main([str(paths.root)]) == EXIT_CANCELLED


def test_a_bug_is_a_sentence_for_people_and_a_traceback_for_us(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("dpo_studio.training.attempt.load_base", bug)
    reason = refuse(make_round(tmp_path, model))
    assert reason == "Training met an unexpected ZeroDivisionError; see train.log"
    assert "secret detail" in capsys.readouterr().err


def test_memory_that_runs_out_once_is_survived_with_the_same_result(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = train(tmp_path / "plain", model)
    original = torch.autograd.backward
    fail_at = iter([False, True])

    def backward(*args: Any, **options: Any) -> None:
        if next(fail_at, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(*args, **options)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    _, report = train(tmp_path / "short", model)
    assert report.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-3)
    assert next(fail_at, None) is None, "memory must have run out, or this test shows nothing"


def test_memory_that_runs_out_thrice_turns_to_gradient_checkpointing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = train(tmp_path / "plain", model, settings=GENTLE)
    original = torch.autograd.backward
    fail_at = iter([True, True, True])

    def backward(*args: Any, **options: Any) -> None:
        if next(fail_at, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        original(*args, **options)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    _, report = train(tmp_path / "short", model, settings=GENTLE)
    assert report.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-3)
    assert "gradient checkpointing" in report.notes[0]


@pytest.mark.parametrize("free", [2**40, None])
def test_enough_memory_changes_nothing_and_says_nothing(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, free: int | None
) -> None:
    _, expected = train(tmp_path / "plain", model, settings=GENTLE)
    monkeypatch.setattr("dpo_studio.training.attempt.free_bytes", lambda _: free)
    _, report = train(tmp_path / "free", model, settings=GENTLE)
    assert (report.adapter_sha256, report.notes) == (expected.adapter_sha256, ())


def test_little_memory_trains_with_gradient_checkpointing_to_the_same_end(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, expected = train(tmp_path / "plain", model, settings=GENTLE)
    monkeypatch.setattr("dpo_studio.training.attempt.free_bytes", lambda _: 2_000_000)
    _, report = train(tmp_path / "short", model, settings=GENTLE)
    assert report.metrics["loss"] == pytest.approx(expected.metrics["loss"], rel=1e-3)
    assert "gradient checkpointing" in report.notes[0]


def test_too_little_memory_is_refused_with_what_would_fit(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpo_studio.training.attempt.free_bytes", lambda _: 500_000)
    reason = refuse(make_round(tmp_path, model))
    assert "Training would take about" in reason
    assert "0.00 GB are free; " in reason
