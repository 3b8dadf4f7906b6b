"""A round that was cut off goes on: after its worker's death, its studio's death, its studio's stop."""

import asyncio
import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpo_studio.domain.codec import to_json
from dpo_studio.domain.round import RoundStatus, StepProgress
from dpo_studio.files import append_jsonl
from dpo_studio.paths import RoundPaths
from dpo_studio.rounds.process_identity import identify
from dpo_studio.services import boot, interruptions, round_runner
from dpo_studio.services.interruptions import Interruptions
from dpo_studio.services.round_lease import NAME
from dpo_studio.services.views import RoundView
from dpo_studio.store import audit, leases
from dpo_studio.store import rounds as rounds_table
from dpo_studio.store.rounds import WorkerIdentity
from tests.services.conftest import Rounds


def folder_of(rounds: Rounds, number: int = 1) -> RoundPaths:
    return rounds.bench.settings.paths.round(number)


def num_starts(rounds: Rounds, number: int = 1) -> int:
    file = folder_of(rounds, number).root / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


@contextlib.contextmanager
def orphaned_worker(rounds: Rounds) -> Iterator[subprocess.Popen[bytes]]:
    """A process that round 1's record names as its worker."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as orphan:
        who = identify(orphan.pid)
        assert who is not None
        with rounds.bench.database.write() as session:
            rounds_table.record_worker(1, WorkerIdentity(who.pid, who.started, who.boot_id), session=session)
        yield orphan


def events(rounds: Rounds) -> list[tuple[str, str]]:
    """(action, text) of every interruption, oldest first."""
    with rounds.bench.database.read() as session:
        found = audit.events_of((interruptions.CUT_OFF, interruptions.WENT_ON), session=session)
    assert all(event.subject == "round 1" for event in found)
    return [(event.action, event.details["text"]) for event in found]


async def stopped(rounds: Rounds) -> None:
    """Nobody works off the queue any more."""
    rounds.task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await rounds.task


async def left_by_a_crash(rounds: Rounds, status: RoundStatus = RoundStatus.RUNNING) -> RoundPaths:
    """What a studio that was killed in mid-round leaves in the table and on the disk."""
    await stopped(rounds)
    await rounds.label(6)
    number = rounds.service.start(trigger="ann").number
    with rounds.bench.database.write() as session:
        for step in (RoundStatus.RUNNING, RoundStatus.GATING):
            if status is not RoundStatus.QUEUED:
                rounds_table.set_status(number, step, now=rounds.bench.clock(), session=session)
            if step is status:
                break
    folder_of(rounds, number).checkpoint.write_text("how far it came")
    return folder_of(rounds, number)


def boots(rounds: Rounds, *, takes_up: bool = True) -> RoundView:
    """The studio starts again."""
    bench = rounds.bench
    boot.reconcile(bench.database, bench.settings.paths, now=bench.clock, takes_up=takes_up)
    return rounds.service.get(1)


async def run_to_the_end(rounds: Rounds) -> RoundView:
    rounds.task = asyncio.create_task(rounds.service.run())
    async with asyncio.timeout(30):
        return await rounds.service.wait(1, poll_s=0.02)


async def test_a_killed_workers_round_goes_on_in_its_folder_and_says_so(rounds: Rounds) -> None:
    rounds.plays("die 1")
    await rounds.label(6)
    view = await rounds.train()
    assert view.status is RoundStatus.PROMOTED
    assert view.reason == "v1 went live. Went on from step 2 after an interruption"
    assert num_starts(rounds) == 2
    assert events(rounds) == [
        ("interrupt", "Interrupted once"),
        ("go on", "Went on from step 2 after an interruption"),
    ]


async def test_steps_that_are_taken_anew_are_kept_once(rounds: Rounds) -> None:
    """The killed worker had come to step 3; its successor goes on after step 2."""
    rounds.plays("die 2")
    await rounds.label(6)
    view = await rounds.train()
    assert [step.step for step in rounds.service.steps(view.number)] == [1, 2, 3]
    assert "then from step 2 after two interruptions" in view.reason


async def test_steps_that_a_killed_studio_had_not_seen_are_in_the_curve(rounds: Rounds) -> None:
    """Its worker had taken them and its checkpoint was there: the curve had a gap before the next one."""
    folder = await left_by_a_crash(rounds)
    (folder.root / "starts").write_text("the worker before\n")
    for step in (1, 2, 3):
        line = StepProgress("training", step, 3, 0.0, {"loss": float(step)})
        append_jsonl(folder.progress, to_json(line))
    boots(rounds)
    await run_to_the_end(rounds)
    assert [(step.step, step.metrics) for step in rounds.service.steps(1)] == [
        (1, {"loss": 1.0}),
        (2, {"loss": 2.0}),
        (3, {"loss": pytest.approx(0.4)}),
    ]


async def test_a_round_that_kills_every_worker_ends_after_three_more(rounds: Rounds) -> None:
    rounds.plays("die")
    await rounds.label(6)
    view = await rounds.train()
    assert view.status is RoundStatus.FAILED
    assert "SIGKILL" in view.reason and interruptions.TOO_MANY in view.reason
    assert num_starts(rounds) == 1 + interruptions.MOST == 4
    assert not folder_of(rounds).checkpoint.exists()


async def test_a_worker_that_failed_with_a_reason_has_no_successor(rounds: Rounds) -> None:
    rounds.plays("refuse")
    await rounds.label(6)
    assert (await rounds.train()).reason == "The loss became NaN at step 3"
    assert num_starts(rounds) == 1
    assert events(rounds) == []


async def test_a_round_cancelled_between_two_workers_starts_none(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(round_runner, "PAUSE_S", 1.0)
    rounds.plays("die")
    await rounds.label(6)
    number = rounds.service.start(trigger="ann").number
    async with asyncio.timeout(20):
        while not events(rounds):
            await asyncio.sleep(0.02)
        rounds.service.cancel(number)
        view = await rounds.service.wait(number, poll_s=0.02)
    await asyncio.sleep(1.2)
    assert view.status is RoundStatus.CANCELLED
    assert view.reason == "Cancelled before it went on. Interrupted once", "it had started already"
    assert num_starts(rounds) == 1


async def test_no_worker_follows_when_the_lease_is_lost(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever took it over may have started one on the same folder."""
    put_back = interruptions.put_back

    def taken_over(*values: object, **options: object) -> bool:
        rounds.bench.clock.tick(minutes=5)
        options["now"] = rounds.bench.clock()
        leases.acquire(NAME, "successor", ttl_s=60, now=rounds.bench.clock(), session=options["session"])  # type: ignore[arg-type]
        return put_back(*values, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(interruptions, "put_back", taken_over)
    rounds.plays("die")
    await rounds.label(6)
    view = await rounds.train()
    assert view.status is RoundStatus.FAILED and "lost to another process" in view.reason
    assert num_starts(rounds) == 1


@pytest.mark.parametrize("status", [RoundStatus.RUNNING, RoundStatus.GATING])
async def test_a_round_goes_on_when_its_studio_was_killed(rounds: Rounds, status: RoundStatus) -> None:
    folder = await left_by_a_crash(rounds, status)
    (folder.root / "starts").write_text("the worker before\n")
    view = boots(rounds)
    assert (view.status, view.reason) == (RoundStatus.QUEUED, "Interrupted once")
    assert folder.checkpoint.exists()
    view = await run_to_the_end(rounds)
    assert view.status is RoundStatus.PROMOTED
    assert view.reason == "v1 went live. Went on from step 2 after an interruption"


async def test_one_crash_counts_once_however_often_the_studio_starts(rounds: Rounds) -> None:
    await left_by_a_crash(rounds)
    for _ in range(5):
        assert boots(rounds).status is RoundStatus.QUEUED
    assert events(rounds) == [("interrupt", "Interrupted once")]


async def test_a_round_that_waited_for_its_turn_was_not_interrupted(rounds: Rounds) -> None:
    await left_by_a_crash(rounds, RoundStatus.QUEUED)
    view = boots(rounds)
    assert (view.status, view.reason) == (RoundStatus.QUEUED, "")
    assert (await run_to_the_end(rounds)).reason == "v1 went live"


async def test_the_fourth_crash_ends_a_round(rounds: Rounds) -> None:
    folder = await left_by_a_crash(rounds)
    for _ in range(interruptions.MOST):
        assert boots(rounds).status is RoundStatus.QUEUED
        with rounds.bench.database.write() as session:
            rounds_table.set_status(1, RoundStatus.RUNNING, now=rounds.bench.clock(), session=session)
    view = boots(rounds)
    assert view.status is RoundStatus.INTERRUPTED
    assert interruptions.TOO_MANY in view.reason and "votes are safe" in view.reason
    assert view.reason.endswith("Interrupted three times")
    assert not folder.checkpoint.exists()


@pytest.mark.parametrize("takes_up", [True, False])
async def test_a_round_cancelled_before_the_crash_stays_ended(rounds: Rounds, takes_up: bool) -> None:
    """The wish was in the folder, its worker had not heard it yet."""
    folder = await left_by_a_crash(rounds)
    folder.cancel.touch()
    assert boots(rounds, takes_up=takes_up).status is RoundStatus.CANCELLED
    assert not folder.checkpoint.exists()
    rounds.task = asyncio.create_task(rounds.service.run())
    await asyncio.sleep(0.3)
    assert num_starts(rounds) == 0
    assert events(rounds) == []


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda folder: folder.job.unlink(), "no plan"),
        (lambda folder: folder.train.write_text(""), "train.jsonl"),
    ],
)
async def test_a_folder_that_cannot_be_used_ends_the_round_with_the_reason(
    rounds: Rounds, harm: Callable[[RoundPaths], object], why: str
) -> None:
    folder = await left_by_a_crash(rounds)
    harm(folder)
    view = boots(rounds)
    assert view.status is RoundStatus.INTERRUPTED
    assert why in view.reason and "votes are safe" in view.reason
    assert not folder.checkpoint.exists()


async def test_a_command_ends_the_round_that_was_cut_off(rounds: Rounds) -> None:
    """`dpo-studio promote` starts a studio for seconds: it must not train, nor use up an interruption."""
    await left_by_a_crash(rounds)
    view = boots(rounds, takes_up=False)
    assert (view.status, view.reason) == (RoundStatus.INTERRUPTED, f"{boot.STOPPED}; {boot.SAFE}")


async def test_the_worker_of_a_killed_studio_is_gone_before_its_round_is_queued(rounds: Rounds) -> None:
    await left_by_a_crash(rounds)
    with orphaned_worker(rounds) as orphan:
        assert boots(rounds).status is RoundStatus.QUEUED
        assert identify(orphan.pid) is None


async def test_a_worker_that_cannot_be_ended_gets_no_second_one_beside_it(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boot, "reap_orphan", lambda *_: True)
    monkeypatch.setattr(boot, "ORPHAN_PATIENCE_S", 0.1)
    await left_by_a_crash(rounds)
    with orphaned_worker(rounds) as orphan:
        view = boots(rounds)
        orphan.kill()
    assert view.status is RoundStatus.INTERRUPTED and "cannot be ended" in view.reason


@pytest.mark.parametrize("rounds", [True], indirect=True)
@pytest.mark.parametrize("state", ["starting", "failed"])
async def test_a_round_that_comes_before_the_model_waits_for_it(rounds: Rounds, state: str) -> None:
    """At the start of the studio the model is still loading, and a version's manifest needs its hashes.

    Beside a model that had failed it trained, and its manifest named no tokenizer.
    """
    await left_by_a_crash(rounds)
    boots(rounds)
    rounds.bench.engine.state = state
    rounds.task = asyncio.create_task(rounds.service.run())
    await asyncio.sleep(0.5)
    assert rounds.service.get(1).status is RoundStatus.QUEUED
    assert num_starts(rounds) == 0
    rounds.bench.engine.state = "ready"
    async with asyncio.timeout(30):
        assert (await rounds.service.wait(1, poll_s=0.02)).status is RoundStatus.PROMOTED


async def test_a_round_of_a_command_does_not_wait_for_a_model_that_failed(rounds: Rounds) -> None:
    """The command would never end."""
    await left_by_a_crash(rounds, RoundStatus.QUEUED)
    rounds.bench.engine.state = "failed"
    view = await run_to_the_end(rounds)
    assert (view.status, view.reason) == (RoundStatus.FAILED, "fake")
    assert num_starts(rounds) == 0


async def test_a_round_of_other_weights_does_not_go_on(rounds: Rounds) -> None:
    await left_by_a_crash(rounds)
    boots(rounds)
    rounds.bench.engine.model_sha256 = "sha256:another"
    view = await run_to_the_end(rounds)
    assert view.status is RoundStatus.FAILED and "other weights" in view.reason
    assert num_starts(rounds) == 0


@pytest.mark.parametrize("rounds", [True], indirect=True)
async def test_a_round_waits_for_the_next_start_when_its_studio_stops(rounds: Rounds) -> None:
    await _running(rounds)
    await stopped(rounds)
    view = rounds.service.get(1)
    assert (view.status, view.reason) == (RoundStatus.QUEUED, "Interrupted once")
    assert boots(rounds).reason == "Interrupted once", "the stop was counted already"
    rounds.plays("good")
    assert (await run_to_the_end(rounds)).status is RoundStatus.PROMOTED


@pytest.mark.parametrize("rounds", [True], indirect=True)
async def test_a_round_that_was_cut_off_too_often_ends_with_its_studio_and_says_why(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It only said that the studio was stopped, as if the next start would have gone on with it."""
    monkeypatch.setattr(interruptions, "MOST", 0)
    await _running(rounds)
    await stopped(rounds)
    view = rounds.service.get(1)
    assert view.status is RoundStatus.INTERRUPTED
    assert view.reason == f"{round_runner.STOPPED}; {interruptions.TOO_MANY}"


@pytest.mark.parametrize("rounds", [True], indirect=True)
async def test_a_cancelled_round_does_not_wait_for_the_next_start(rounds: Rounds) -> None:
    await _running(rounds)
    rounds.service.cancel(1)
    await stopped(rounds)
    assert rounds.service.get(1).status is RoundStatus.CANCELLED
    assert events(rounds) == []


async def _running(rounds: Rounds) -> None:
    """A round whose worker is there and waits."""
    rounds.plays("hang")
    await rounds.label(6)
    rounds.service.start(trigger="ann")
    async with asyncio.timeout(20):
        while rounds.service.get(1).progress is None:
            await asyncio.sleep(0.02)


async def test_a_cancel_that_no_worker_could_hear_is_on_the_disk(rounds: Rounds) -> None:
    """A studio killed right afterwards would have gone on with the round."""
    await stopped(rounds)
    await rounds.label(6)
    number = rounds.service.start(trigger="ann").number
    runner = rounds.service._runner
    runner._number = number
    assert runner.cancel(number)
    assert folder_of(rounds).cancel.exists()


async def test_the_checkpoints_of_rounds_that_are_over_are_swept_away(rounds: Rounds, tmp_path: Path) -> None:
    kept = (await left_by_a_crash(rounds)).checkpoint
    old = folder_of(rounds, 7).checkpoint
    old.parent.mkdir()
    old.touch()
    boots(rounds)
    assert kept.exists() and not old.exists()
    assert kept.is_relative_to(tmp_path)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Interruptions(), ""),
        (Interruptions(1), "Interrupted once"),
        (Interruptions(1, (40,)), "Went on from step 40 after an interruption"),
        (Interruptions(3, (40, 0)), "Went on from step 40, then from the start after three interruptions"),
    ],
)
def test_interruptions_are_told_in_words(found: Interruptions, words: str) -> None:
    assert found.in_words() == words
