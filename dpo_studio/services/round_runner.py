"""RoundRunner: takes one queued round through worker, gate, publication and promotion.

The parent, not the worker, writes every status. A worker that hangs, fails or reports nonsense ends its
round with a reason and touches nothing else; serving goes on with the version that is live. One that was
killed, or whose studio stops, did nothing wrong: its round goes back to the queue and on from its checkpoint,
so many times as `interruptions` allows. Never two at once on a folder: the next worker starts when the one
before is gone, and only under the lease.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime

from sqlmodel import Session

from dpo_studio import __version__
from dpo_studio.domain.chat import ChatEngine
from dpo_studio.domain.codec import from_json
from dpo_studio.domain.round import RoundJob, RoundReport, RoundStatus, StepProgress, Verdict
from dpo_studio.errors import Busy, Conflict, EngineUnavailable, ModelError, StorageError, StudioError
from dpo_studio.files import read_json
from dpo_studio.paths import StoragePaths
from dpo_studio.rounds import gate, registry
from dpo_studio.rounds.launcher import (
    CANCELLED,
    LaunchSettings,
    WorkerOutcome,
    WorkerProcess,
    ask_to_stop,
    finished_before,
)
from dpo_studio.rounds.progress_tail import steps_until
from dpo_studio.services import interruptions
from dpo_studio.services.deployment import DeploymentService, wait_until_ready
from dpo_studio.services.round_lease import RoundLease
from dpo_studio.store import leases, rounds, versions
from dpo_studio.store.database import Database
from dpo_studio.store.leases import LeaseHold
from dpo_studio.store.rounds import WorkerIdentity

STATUS_OF_OUTCOME = {
    "failed": RoundStatus.FAILED,
    "killed": RoundStatus.FAILED,
    "hung": RoundStatus.FAILED,
    "cancelled": RoundStatus.CANCELLED,
}
ENGINE_PATIENCE_S = 120.0
RETRY_S = 2.0
POLL_S = 0.2
PAUSE_S = 1.0
"""Between the death of a worker and the start of the next."""
STOPPED = "The studio was stopped while this round ran"
logger = logging.getLogger(__name__)


class RoundRunner:
    """Runs rounds one after the other; `run_one` returns when the round is final or waits for a person."""

    def __init__(
        self,
        database: Database,
        engine: ChatEngine,
        deployment: DeploymentService,
        paths: StoragePaths,
        *,
        thresholds: gate.GateThresholds,
        lease: RoundLease,
        launch: LaunchSettings,
        now: Callable[[], datetime],
        takes_up: bool = False,
    ) -> None:
        """takes_up: a round that the studio's stop cuts off waits for its next start, instead of ending."""
        self._database = database
        self._engine = engine
        self._deployment = deployment
        self._paths = paths
        self._thresholds = thresholds
        self._lease = lease
        self._launch = launch
        self._now = now
        self._takes_up = takes_up
        self._worker: WorkerProcess | None = None
        self._progress: StepProgress | None = None
        self._number: int | None = None
        self._tokenizer_sha256 = ""
        self._is_cancelled = False
        self._has_trained = False
        self._is_going_on = False
        """The round was cut off before, and its training has not gone on yet."""
        # One thread, so that steps are saved in order and no commit holds up the event loop.
        self._scribe = ThreadPoolExecutor(1, thread_name_prefix="round-steps")

    def progress(self, number: int) -> StepProgress | None:
        """The running round's latest step; None for any other round."""
        return self._progress if number == self._number else None

    def is_cancelling(self, number: int) -> bool:
        """Whether the running round was asked to stop and its worker has not ended yet."""
        return number == self._number and self._is_cancelled and not self._has_trained

    def cancel(self, number: int) -> bool:
        """Ask the worker of a running round to stop within one step; False when it has no worker any more.

        Safe from any thread; a worker that is just being started is stopped as soon as it is there. The wish
        is in the round's folder, so that a crash before it is granted makes nothing go on.
        """
        if number != self._number or self._has_trained:
            return False
        self._is_cancelled = True
        if (worker := self._worker) is not None:
            worker.cancel()
        else:
            ask_to_stop(self._paths.round(number))
        return True

    async def run_one(self, number: int, *, is_gate_manual: Callable[[], bool]) -> None:
        """Take round `number` to its end. Never raises for what can go wrong in a round."""
        self._number, self._progress = number, None
        self._is_cancelled = self._has_trained = False
        try:
            await self._wait_for_model(number)
            async with self._lease.held() as hold:
                outcome = await self._train(number, hold)
                if outcome.kind == "ok":
                    await self._gate(number, hold, is_gate_manual)
                else:
                    await self._end(number, STATUS_OF_OUTCOME[outcome.kind], outcome.reason)
        except StudioError as error:
            await self._end(number, RoundStatus.FAILED, str(error))
        except Exception:
            logger.exception("round %d failed", number)
            await self._end(number, RoundStatus.FAILED, "An unexpected error; see the studio's log")
        except asyncio.CancelledError:
            # Shielded: the studio that stops may cancel again, and the mark is to be made all the same.
            await asyncio.shield(asyncio.to_thread(self._cut_off, number))
            raise
        finally:
            self._number = self._worker = None

    async def _wait_for_model(self, number: int) -> None:
        """A round that is taken up may come before the model is there, which its version has to be named by.

        Where no model can be had, it waits for a start of the studio that has one, or ends with
        EngineUnavailable if it cannot wait. Raises ModelError for another model.
        """
        while not (status := self._engine.status).model_sha256:
            if status.state in ("failed", "stopped") and not self._takes_up:
                raise EngineUnavailable(status.detail or "The model could not be started")
            await asyncio.sleep(POLL_S)
        # Kept, as an engine that is being restarted does not know its own.
        self._tokenizer_sha256 = status.tokenizer_sha256
        if status.model_sha256 != (await asyncio.to_thread(self._job, number)).model_sha256:
            raise ModelError(
                "The round was begun with other weights than the studio has now; start a new one"
            )

    async def _train(self, number: int, hold: LeaseHold) -> WorkerOutcome:
        """The outcome of the last worker: of the one that came to its end, or was killed once too often."""
        try:
            while True:
                await asyncio.to_thread(self._set_running, number, hold)
                finished = await asyncio.to_thread(finished_before, self._paths.round(number))
                outcome = finished or await self._work(number)
                if self._is_cancelled:
                    return CANCELLED
                if outcome.kind != "killed":
                    return outcome
                if not await asyncio.to_thread(self._put_back, number, hold, outcome.reason):
                    return replace(outcome, reason=f"{outcome.reason}; {interruptions.TOO_MANY}")
                logger.warning("round %d: %s; it goes on", number, outcome.reason)
                await asyncio.sleep(PAUSE_S)
        finally:
            self._has_trained = True
            await asyncio.get_running_loop().run_in_executor(self._scribe, lambda: None)

    async def _work(self, number: int) -> WorkerOutcome:
        """One worker, from its start until it is gone."""
        if self._is_cancelled:
            return CANCELLED
        worker = await WorkerProcess.start(self._paths.round(number), self._launch)
        self._worker = worker
        if self._is_cancelled:
            worker.cancel()
        watching = asyncio.create_task(worker.wait(lambda step: self._record(number, step)))
        try:
            await asyncio.to_thread(self._remember, number, worker)
            return await watching
        finally:
            # Leaving early, for whatever reason, ends the worker too.
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            self._worker = None

    def _set_running(self, number: int, hold: LeaseHold) -> None:
        with self._database.write() as session:
            rounds.set_status(number, RoundStatus.RUNNING, lease=hold, now=self._now(), session=session)
            self._is_going_on = number in interruptions.of_rounds(session)

    def _put_back(self, number: int, hold: LeaseHold, cause: str) -> bool:
        """Queue a round whose worker was killed; False when that happened too often."""
        with self._database.write() as session:
            return interruptions.put_back(number, cause, lease=hold, now=self._now(), session=session)

    def _job(self, number: int) -> RoundJob:
        path = self._paths.round(number).job
        try:
            return from_json(RoundJob, read_json(path), where=path.name)
        except (OSError, ValueError) as error:
            raise StorageError(
                f"The plan of round {number} could not be read ({error}); start a new one"
            ) from error

    def _set_gating(self, number: int, hold: LeaseHold, report: RoundReport, verdict: Verdict) -> None:
        with self._database.write() as session:
            rounds.set_status(number, RoundStatus.GATING, lease=hold, now=self._now(), session=session)
            rounds.record_training(number, report.facts, session=session)
            rounds.record_result(
                number, metrics=report.metrics, verdict=verdict, version=None, session=session
            )

    def _remember(self, number: int, worker: WorkerProcess) -> None:
        if (who := worker.identity) is not None:
            with self._database.write() as session:
                rounds.record_worker(
                    number, WorkerIdentity(who.pid, who.started, who.boot_id), session=session
                )

    def _record(self, number: int, step: StepProgress) -> None:
        self._progress = step
        if self._is_going_on and step.phase == "training":
            self._is_going_on = False
            # The line with metrics is of a step that was taken, the one without says where training stands.
            self._scribe.submit(self._save_place, number, step.step - bool(step.metrics))
        if step.metrics:
            self._scribe.submit(self._save_step, number, step)

    def _save_place(self, number: int, step: int) -> None:
        taken = steps_until(self._paths.round(number).progress, step)
        with contextlib.suppress(StorageError, Busy), self._database.write() as session:
            interruptions.go_on(number, step, taken, now=self._now(), session=session)

    def _save_step(self, number: int, step: StepProgress) -> None:
        # A full disk costs a point of the curve, not the round.
        with contextlib.suppress(StorageError, Busy), self._database.write() as session:
            rounds.add_steps(number, [step], session=session)

    async def _gate(self, number: int, hold: LeaseHold, is_gate_manual: Callable[[], bool]) -> None:
        folder = self._paths.round(number)
        report = from_json(RoundReport, read_json(folder.report))
        verdict = gate.judge(report, self._thresholds)
        await asyncio.to_thread(self._set_gating, number, hold, report, verdict)
        if not verdict.passed:
            await self._end(number, RoundStatus.REJECTED, _first_failure(verdict))
            return
        name = await asyncio.to_thread(self._publish, number, hold, report, verdict)
        if await asyncio.to_thread(is_gate_manual):
            await self._end(number, RoundStatus.WAITING, f"{name} passed the gate; a person decides")
            return
        try:
            await wait_until_ready(self._engine, timeout_s=ENGINE_PATIENCE_S)
            await self.promote(number, name, actor="gate", hold=hold)
        except StudioError as error:
            # It is published and good; only the engine could not take it now.
            reason = f"{name} passed the gate but could not go live: {error}. Promote it when that is mended"
            await self._end(number, RoundStatus.WAITING, reason)

    def _publish(self, number: int, hold: LeaseHold, report: RoundReport, verdict: Verdict) -> str:
        """Name the adapter v<number>: the folder first, then the row.

        A crash between the two leaves a folder that no row names; the next boot sweeps it. So does a lost
        lease (Conflict): whoever took it over has ended this round already.
        """
        name = f"v{number}"
        folder = self._paths.round(number)
        job = self._job(number)
        registry.publish(
            folder.adapter,
            name=name,
            round_number=number,
            model=job.model,
            model_sha256=job.model_sha256,
            tokenizer_sha256=self._tokenizer_sha256,
            dataset_sha256=job.train_sha256,
            code_version=__version__,
            now=self._now(),
            paths=self._paths,
            expected_sha256=report.adapter_sha256 or None,
        )
        with self._database.write() as session:
            leases.require(hold, now=self._now(), session=session)
            versions.add_version(name, round_number=number, now=self._now(), session=session)
            rounds.record_result(
                number, metrics=report.metrics, verdict=verdict, version=name, session=session
            )
        return name

    async def promote(self, number: int, name: str, *, actor: str, hold: LeaseHold | None = None) -> None:
        """Make the round's version live; the round's status and the pointer change in one transaction."""

        def mark(session: Session) -> None:
            rounds.set_status(
                number,
                RoundStatus.PROMOTED,
                reason=f"{name} went live",
                lease=hold,
                now=self._now(),
                session=session,
            )

        await self._deployment.promote(name, actor=actor, within=mark)

    async def _end(self, number: int, status: RoundStatus, reason: str) -> None:
        """Write the status, waiting for as long as the disk refuses: a round must not stay "running"."""
        with contextlib.suppress(OSError):
            # Of a killed worker; a worker that came to its end has removed it.
            self._paths.round(number).checkpoint.unlink(missing_ok=True)
        while True:
            try:
                await asyncio.to_thread(self._set, number, status, reason)
                return
            except (StorageError, Busy):
                logger.error("round %d: its end could not be saved yet", number)
                await asyncio.sleep(RETRY_S)

    def _cut_off(self, number: int) -> None:
        """The studio stops: the round waits for its next start, or ends."""
        # What cannot be saved now, the next boot finds out by itself.
        with contextlib.suppress(StorageError, Busy):
            if self._is_cancelled:
                self._set(number, RoundStatus.CANCELLED, CANCELLED.reason)
            elif why := self._wait_for_next_start(number) if self._takes_up else STOPPED:
                self._set(number, RoundStatus.INTERRUPTED, why)

    def _wait_for_next_start(self, number: int) -> str:
        """Leave the round in the queue; why that cannot be, as a sentence, or empty."""
        with self._database.write() as session:
            record = rounds.get_round(number, session=session)
            assert record is not None
            if record.status is RoundStatus.RUNNING:
                is_back = interruptions.put_back(number, STOPPED, now=self._now(), session=session)
                return "" if is_back else f"{STOPPED}; {interruptions.TOO_MANY}"
            # Only its turn, or the model, was waited for: nothing was cut off. What the gate does to a
            # version may still be under way in a thread, and is not done twice.
            return "" if record.status is RoundStatus.QUEUED else STOPPED

    def _set(self, number: int, status: RoundStatus, reason: str) -> None:
        # Conflict: somebody cancelled it in between, and a final status stays.
        with contextlib.suppress(Conflict), self._database.write() as session:
            rounds.set_status(number, status, reason=reason, now=self._now(), session=session)


def _first_failure(verdict: Verdict) -> str:
    return verdict.reasons[0] if verdict.reasons else "The gate gave no reason"
