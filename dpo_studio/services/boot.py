"""What a start does before anyone is let in: sweep, reconcile, fill the queue. Runs once, offline."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from sqlmodel import Session

from dpo_studio.domain.chat import BASE, Message
from dpo_studio.domain.round import RoundStatus
from dpo_studio.errors import ModelError
from dpo_studio.paths import RoundPaths, StoragePaths
from dpo_studio.rounds import registry
from dpo_studio.rounds.hindrance import hindrance
from dpo_studio.rounds.process_identity import ProcessIdentity, has_ended, reap_orphan
from dpo_studio.services import interruptions
from dpo_studio.store import audit, prompts, rounds, versions
from dpo_studio.store.database import Database
from dpo_studio.store.rounds import RoundRecord

logger = logging.getLogger(__name__)
STOPPED = "The studio stopped while this round ran"
SAFE = "its votes are safe and train in the next round"
CANCELLED = "Cancelled; the studio stopped before its training did"
ORPHAN_PATIENCE_S = 10.0


def reconcile(
    database: Database, paths: StoragePaths, *, now: Callable[[], datetime], takes_up: bool = False
) -> None:
    """Make memory, disk and processes agree with the database after any kind of death.

    Ends workers that outlived their studio (by pid and start time, never by name), and removes unfinished
    folders, checkpoints that nobody goes on from, and version folders that no row names.

    takes_up: the round that was cut off goes back to the queue and on from its checkpoint, unless a person
    had cancelled it, its folder cannot be used, or it was cut off too often. Otherwise it is marked
    interrupted: a command that needs a studio for seconds is no place to train.
    """
    with database.read() as session:
        left_running = rounds.active_round(session=session)
        named = {record.name for record in versions.list_versions(session=session)}
    if left_running is not None:
        is_gone = _end_worker(left_running)
        obstacle = _obstacle(left_running, paths, is_gone) if takes_up else ""
        with database.write() as session:
            if paths.round(left_running.number).cancel.exists():
                number = left_running.number
                rounds.set_status(number, RoundStatus.CANCELLED, reason=CANCELLED, now=now(), session=session)
            elif not takes_up:
                rounds.mark_interrupted(f"{STOPPED}; {SAFE}", now=now(), session=session)
            elif why := obstacle or _queue_again(left_running, now(), session):
                reason = f"{STOPPED} and it could not go on: {why}; {SAFE}"
                rounds.mark_interrupted(reason, now=now(), session=session)
    _drop_checkpoints(database, paths)
    registry.sweep(paths, named=named)


def _end_worker(left_running: RoundRecord) -> bool:
    """Whether the worker that outlived its studio is gone, or there never was one."""
    if (worker := left_running.worker) is None:
        return True
    reap_orphan(worker.pid, worker.started, worker.boot_id)
    who = ProcessIdentity(worker.pid, worker.started, worker.boot_id)
    return has_ended(who, timeout_s=ORPHAN_PATIENCE_S)


def _obstacle(left_running: RoundRecord, paths: StoragePaths, is_worker_gone: bool) -> str:
    """Why the round cannot go on, as the end of a sentence; empty when it can. Reads its whole data."""
    if not is_worker_gone:
        return "its training process cannot be ended"
    if left_running.version is not None:
        return f"{left_running.version} was published already, and can be promoted by hand"
    if not left_running.dataset_sha256:
        return "its data was not written yet"
    return hindrance(paths.round(left_running.number))


def _queue_again(left_running: RoundRecord, now: datetime, session: Session) -> str:
    """Let the queue have the round; if it was cut off too often, nothing is done and that is the answer."""
    # One that still waits for its turn was not cut off.
    if left_running.status is RoundStatus.QUEUED:
        return ""
    if not interruptions.put_back(left_running.number, STOPPED, now=now, session=session):
        return interruptions.TOO_MANY
    logger.warning("round %d: %s; it goes on", left_running.number, STOPPED)
    return ""


def _drop_checkpoints(database: Database, paths: StoragePaths) -> None:
    """Remove those of rounds that are over; their votes train anew in the next one."""
    with database.read() as session:
        active = rounds.active_round(session=session)
    kept = None if active is None else paths.round(active.number).checkpoint
    for checkpoint in paths.rounds.glob(f"*/{RoundPaths(paths.rounds).checkpoint.name}"):
        if checkpoint != kept:
            checkpoint.unlink(missing_ok=True)


def mend_live_pointer(database: Database, paths: StoragePaths, *, now: Callable[[], datetime]) -> str:
    """Name of the live version, whose folder is whole.

    A damaged one (a disk error, a folder deleted by hand) is never served: the pointer goes back to the
    newest earlier version that is whole, or to base, and the audit log says why.
    """
    while True:
        with database.read() as session:
            live = versions.get_live(session=session)
        if live.version == BASE:
            return BASE
        try:
            registry.verify(paths.version(live.version))
            return live.version
        except ModelError as error:
            logger.error("the live version cannot be served: %s", error)
            details = {"from": live.version, "reason": str(error)}
        with database.write() as session:
            target = versions.promoted_before(live.version, session=session) or BASE
            versions.set_live(target, expected_serial=live.serial, actor="boot", now=now(), session=session)
            audit.record(
                actor="boot", action="rollback", subject=target, details=details, now=now(), session=session
            )


def seed_queue(database: Database, texts: Sequence[str], *, now: Callable[[], datetime]) -> None:
    """Fill an empty prompt queue, so that the first visitor has something to judge."""
    with database.write() as session:
        if prompts.count_prompts(session=session) == 0:
            conversations = [(Message("user", text),) for text in texts]
            prompts.add_prompts(conversations, source="starter", now=now(), session=session)
