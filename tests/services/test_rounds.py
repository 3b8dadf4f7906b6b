"""Rounds from votes to the live pointer, with a real database, real child processes and a scripted worker."""

import asyncio
import contextlib
import logging
import sqlite3
import time
from dataclasses import replace
from typing import Any

import pytest

from dpo_studio.domain.chat import EngineStatus
from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import RoundStatus, TrainingFacts, preset_for
from dpo_studio.errors import BadInput, Conflict, EngineUnavailable, ModelError, NotFound
from dpo_studio.rounds import registry
from dpo_studio.services import boot
from dpo_studio.services.round_lease import NAME
from dpo_studio.services.round_runner import RoundRunner
from dpo_studio.services.views import ScheduleView
from dpo_studio.store import leases, versions
from tests.fakes import FakeEngine
from tests.services.conftest import SCHEDULE, Rounds, said


async def until_running(rounds: Rounds, number: int, *, poll_s: float = 0.02) -> None:
    """Wait until the round's worker has been asked for; `poll_s` of 0 looks at every turn of the loop."""
    while rounds.service.get(number).status is not RoundStatus.RUNNING:
        await asyncio.sleep(poll_s)


async def test_a_good_round_goes_live(rounds: Rounds) -> None:
    await rounds.label(6)
    view = await rounds.train()
    assert (view.status, view.version) == (RoundStatus.PROMOTED, "v1"), view.reason
    assert rounds.bench.deployment.live() == "v1"
    assert view.num_pairs == 6 == view.num_train + view.num_heldout
    assert view.verdict is not None and view.verdict.passed and view.verdict.reasons
    registry.verify(rounds.bench.settings.paths.version("v1"))


async def test_steps_are_kept(rounds: Rounds) -> None:
    await rounds.label(6)
    view = await rounds.train()
    steps = rounds.service.steps(view.number)
    assert [step.step for step in steps if step.phase == "training"] == [1, 2, 3]


@pytest.mark.parametrize("ending", ["good", "bad"])
async def test_a_rounds_record_says_how_it_trained_whatever_the_gate_says(
    rounds: Rounds, ending: str
) -> None:
    rounds.plays(ending)
    await rounds.label(6)
    trained = TrainingFacts("Trained in the packed layout.", ("Training ended early.",), 2, 1, 3, 4, 1.5)
    assert (await rounds.train()).training == trained
    (listed,) = rounds.service.list()
    assert listed.training == trained


async def test_a_round_without_a_report_says_nothing_of_its_training(rounds: Rounds) -> None:
    rounds.plays("refuse")
    await rounds.label(6)
    assert (await rounds.train()).training is None


async def test_a_round_that_fails_the_gate_changes_nothing(rounds: Rounds) -> None:
    rounds.plays("bad")
    await rounds.label(6)
    view = await rounds.train()
    assert (view.status, view.version) == (RoundStatus.REJECTED, None)
    assert view.verdict is not None and not view.verdict.passed
    assert rounds.bench.deployment.live() == "base"
    assert not rounds.bench.settings.paths.version("v1").exists()


@pytest.mark.parametrize(("ending", "reason"), [("refuse", "NaN at step 3"), ("die", "SIGKILL")])
async def test_a_worker_that_ends_badly_fails_its_round_with_the_reason(
    rounds: Rounds, ending: str, reason: str
) -> None:
    rounds.plays(ending)
    await rounds.label(6)
    view = await rounds.train()
    assert view.status is RoundStatus.FAILED
    assert reason in view.reason
    rounds.plays("good")
    assert (await rounds.train()).status is RoundStatus.PROMOTED


async def test_a_running_round_can_be_cancelled_and_stands_alone(rounds: Rounds) -> None:
    rounds.plays("hang")
    await rounds.label(6)
    started = rounds.service.start(trigger="ann")
    async with asyncio.timeout(20):
        await until_running(rounds, started.number)
        with pytest.raises(Conflict):
            rounds.service.start(trigger="bob")
        await asyncio.sleep(0.2)
        assert not rounds.service.get(started.number).is_cancelling
        assert rounds.service.cancel(started.number).is_cancelling, "until its worker has stopped"
        view = await rounds.service.wait(started.number, poll_s=0.02)
    assert (view.status, view.is_cancelling) == (RoundStatus.CANCELLED, False)
    with pytest.raises(Conflict):
        rounds.service.cancel(started.number)


async def test_a_manual_gate_waits_for_a_person(rounds: Rounds) -> None:
    rounds.service.set_schedule(replace(SCHEDULE, gate="manual"), actor="ann")
    await rounds.label(6)
    view = await rounds.train()
    assert (view.status, view.version) == (RoundStatus.WAITING, "v1")
    assert rounds.bench.deployment.live() == "base"
    assert (await rounds.service.approve(view.number, actor="ann")).status is RoundStatus.PROMOTED
    assert rounds.bench.deployment.live() == "v1"
    with pytest.raises(Conflict):
        rounds.service.reject(view.number, actor="ann")


async def test_a_person_can_turn_a_waiting_round_down(rounds: Rounds) -> None:
    rounds.service.set_schedule(replace(SCHEDULE, gate="manual"), actor="ann")
    await rounds.label(6)
    view = await rounds.train()
    assert rounds.service.reject(view.number, actor="ann").status is RoundStatus.REJECTED
    assert rounds.bench.deployment.live() == "base"


async def test_a_version_names_its_tokenizer_also_while_the_engine_is_restarted(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that has just died knows no hashes, and the manifest was written without."""
    known = vars(FakeEngine)["status"].fget

    def status(engine: FakeEngine) -> EngineStatus:
        found: EngineStatus = known(engine)
        return found if found.model_sha256 else replace(found, tokenizer_sha256="")

    monkeypatch.setattr(FakeEngine, "status", property(status))
    rounds.service.set_schedule(replace(SCHEDULE, gate="manual"), actor="ann")
    rounds.plays("slow")
    await rounds.label(6)
    number = rounds.service.start(trigger="ann").number
    async with asyncio.timeout(30):
        while rounds.service.get(number).progress is None:
            await asyncio.sleep(0.02)
        rounds.bench.engine.state = "restarting"
        view = await rounds.service.wait(number, poll_s=0.02)
    assert view.version == "v1"
    manifest = registry.read_manifest(rounds.bench.settings.paths.version("v1"))
    assert manifest.tokenizer_sha256 == "sha256:tokenizer"


async def test_a_version_that_the_engine_refuses_waits_and_the_old_one_stays(rounds: Rounds) -> None:
    rounds.bench.engine.refused["v1"] = "no room for it"
    await rounds.label(6)
    view = await rounds.train()
    assert view.status is RoundStatus.WAITING
    assert "no room for it" in view.reason
    assert rounds.bench.deployment.live() == "base"


async def test_a_version_that_says_nothing_never_goes_live(rounds: Rounds) -> None:
    await rounds.label(6)
    rounds.bench.engine.is_silent = True
    view = await rounds.train()
    assert view.status is RoundStatus.WAITING
    assert "smoke prompt" in view.reason
    assert rounds.bench.deployment.live() == "base"


async def test_rollback_walks_back_to_base(rounds: Rounds) -> None:
    await rounds.label(6)
    await rounds.train()
    await rounds.label(2)
    await rounds.train()
    deployment = rounds.bench.deployment
    assert deployment.live() == "v2"
    assert await deployment.rollback(actor="ann") == "v1"
    assert await deployment.rollback(actor="ann") == "base"
    with pytest.raises(Conflict):
        await deployment.rollback(actor="ann")


async def test_nothing_to_train_on_is_a_sentence_and_no_round(rounds: Rounds) -> None:
    with pytest.raises(BadInput, match="at least one preference"):
        rounds.service.start(trigger="ann")
    assert rounds.service.list() == []


async def test_a_round_needs_to_know_the_model(rounds: Rounds) -> None:
    await rounds.label(1)
    rounds.bench.engine.state = "starting"
    with pytest.raises(EngineUnavailable):
        rounds.service.start(trigger="ann")


async def test_the_clock_starts_a_round_when_it_is_due_and_not_before(rounds: Rounds) -> None:
    await rounds.label(3)
    rounds.bench.clock.tick(minutes=5)
    await rounds.service.tick()
    assert rounds.service.list() == [], "three pairs are fewer than four"
    await rounds.label(1)
    await rounds.service.tick()
    assert rounds.service.list() == [], "the last vote is inside its undo window"
    rounds.bench.clock.tick(seconds=61)
    await rounds.service.tick()
    (view,) = rounds.service.list()
    async with asyncio.timeout(30):
        await rounds.service.wait(view.number, poll_s=0.02)
    await rounds.label(4)
    rounds.bench.clock.tick(minutes=2)
    await rounds.service.tick()
    assert len(rounds.service.list()) == 1, "the interval has not passed"
    rounds.bench.clock.tick(minutes=9)
    await rounds.service.tick()
    assert len(rounds.service.list()) == 2


async def test_a_disabled_schedule_starts_nothing(rounds: Rounds) -> None:
    rounds.service.set_schedule(replace(SCHEDULE, enabled=False), actor="ann")
    await rounds.label(5)
    rounds.bench.clock.tick(hours=2)
    await rounds.service.tick()
    assert rounds.service.list() == []
    assert rounds.service.status().next_run_at is None


async def test_a_boot_marks_what_was_cut_off_and_sweeps_what_nobody_names(rounds: Rounds) -> None:
    rounds.plays("hang")
    await rounds.label(6)
    started = rounds.service.start(trigger="ann")
    async with asyncio.timeout(20):
        await until_running(rounds, started.number)
    paths = rounds.bench.settings.paths
    orphan = paths.version("v9")
    orphan.mkdir(parents=True)
    checkpoint = paths.round(started.number).checkpoint
    checkpoint.touch()
    boot.reconcile(rounds.bench.database, paths, now=rounds.bench.clock)
    assert rounds.service.get(started.number).status is RoundStatus.INTERRUPTED
    assert not orphan.exists()
    assert not checkpoint.exists()


async def test_a_process_that_lost_its_lease_while_it_gated_names_no_version(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen between gate and name, it once left a version row for a round that its successor had ended."""
    gated = RoundRunner._set_gating

    def gated_then_frozen(self: RoundRunner, *values: Any) -> None:
        gated(self, *values)
        rounds.bench.clock.tick(minutes=5)
        with rounds.bench.database.write() as session:
            leases.acquire(NAME, "successor", ttl_s=60, now=rounds.bench.clock(), session=session)

    monkeypatch.setattr(RoundRunner, "_set_gating", gated_then_frozen)
    await rounds.label(6)
    view = await rounds.train()
    assert view.status is RoundStatus.FAILED
    assert view.version is None
    with rounds.bench.database.read() as session:
        assert versions.list_versions(session=session) == []


async def test_a_process_that_lost_its_lease_cannot_promote(rounds: Rounds) -> None:
    """Frozen past the lease's end while its worker finished: the successor's token is newer."""
    rounds.plays("slow")
    await rounds.label(6)
    started = rounds.service.start(trigger="ann")
    async with asyncio.timeout(20):
        await until_running(rounds, started.number, poll_s=0.01)
        rounds.bench.clock.tick(minutes=5)
        with rounds.bench.database.write() as session:
            taken = leases.acquire(NAME, "successor", ttl_s=60, now=rounds.bench.clock(), session=session)
        view = await rounds.service.wait(started.number, poll_s=0.02)
    assert taken is not None and taken.token == 2
    assert view.status is RoundStatus.FAILED
    assert "lost to another process" in view.reason
    assert rounds.bench.deployment.live() == "base"


async def test_base_answers_while_the_storage_is_served_with_another_model(rounds: Rounds) -> None:
    await rounds.label(6)
    await rounds.train()
    deployment, engine = rounds.bench.deployment, rounds.bench.engine
    engine.model_sha256 = "sha256:another"
    assert deployment.live() == "base"
    assert "other base weights" in rounds.service.status().detail
    with pytest.raises(ModelError, match="other base weights"):
        await deployment.promote("v1", actor="ann")
    view = await rounds.bench.labeling.next_ready("ann", said("hello"))
    assert rounds.bench.labeling.vote("ann", view.id, Choice.A).version_a == "base"
    engine.model_sha256 = "sha256:model"
    assert deployment.live() == "v1", "the pointer had stayed where it was"


async def test_a_start_with_other_weights_warns_and_asks_the_engine_for_nothing(
    rounds: Rounds, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine was told to load what cannot fit it, and logged an error over what works as meant."""
    await rounds.label(6)
    await rounds.train()
    deployment, engine = rounds.bench.deployment, rounds.bench.engine
    assert list(deployment.folders_to_serve()) == ["v1"]
    engine.model_sha256 = "sha256:another"
    with caplog.at_level(logging.INFO, "dpo_studio"):
        assert deployment.folders_to_serve() == {}
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "base answers instead of v1: v1 was trained on other base weights" in record.getMessage()


async def test_training_settings_come_from_the_model_size(rounds: Rounds) -> None:
    await rounds.label(2)
    assert (await rounds.train()).settings == preset_for(3_000_000)


async def test_a_cancel_before_the_worker_is_there_still_counts(rounds: Rounds) -> None:
    rounds.plays("hang")
    await rounds.label(6)
    started = rounds.service.start(trigger="ann")
    async with asyncio.timeout(20):
        await until_running(rounds, started.number, poll_s=0)
        rounds.service.cancel(started.number)
        view = await rounds.service.wait(started.number, poll_s=0.02)
    assert view.status is RoundStatus.CANCELLED


async def test_a_round_that_starts_while_it_is_cancelled_in_the_queue_has_no_worker_left(
    rounds: Rounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row said cancelled while its worker trained on for nobody, and the next round waited for that."""
    rounds.plays("hang")
    await rounds.label(6)
    started = rounds.service.start(trigger="ann")
    async with asyncio.timeout(20):
        while rounds.service.get(started.number).progress is None:
            await asyncio.sleep(0.02)
    with monkeypatch.context() as seen_before_it_started:
        seen_before_it_started.setattr(rounds.service, "get", lambda _: started)
        rounds.service.cancel(started.number)
    assert rounds.service.get(started.number).status is RoundStatus.CANCELLED
    rounds.plays("good")
    assert (await rounds.train()).status is RoundStatus.PROMOTED


async def test_a_locked_database_holds_up_nobody_else(rounds: Rounds) -> None:
    """While another process writes for long, the event loop goes on: it serves everyone."""
    path = rounds.bench.settings.paths.database
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        asking = asyncio.create_task(rounds.bench.labeling.next_ready("ann"))
        ticking = asyncio.create_task(rounds.service.tick())
        longest = 0.0
        for _ in range(40):
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)
        assert not asking.done()
        other.execute("ROLLBACK")
    await asyncio.gather(asking, ticking)
    assert longest < 1.0, "the busy timeout is 15 s; a blocked loop would have shown it"


async def test_unknown_rounds_and_versions_are_not_found(rounds: Rounds) -> None:
    with pytest.raises(NotFound):
        rounds.service.get(7)
    with pytest.raises(NotFound):
        await rounds.bench.deployment.promote("v7", actor="ann")


@pytest.mark.parametrize(
    "schedule", [replace(SCHEDULE, interval_minutes=0), replace(SCHEDULE, min_new_pairs=0)]
)
async def test_a_schedule_out_of_range_is_refused(rounds: Rounds, schedule: ScheduleView) -> None:
    with pytest.raises(BadInput, match="expected 1 to"):
        rounds.service.set_schedule(schedule, actor="ann")
    assert rounds.service.schedule() == SCHEDULE
