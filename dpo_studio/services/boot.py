"""What a start does before anyone is let in: sweep, reconcile, fill the queue. Runs once, offline."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from dpo_studio.domain.chat import BASE, Message
from dpo_studio.errors import ModelError
from dpo_studio.paths import StoragePaths
from dpo_studio.rounds import registry
from dpo_studio.rounds.process_identity import reap_orphan
from dpo_studio.store import audit, prompts, rounds, versions
from dpo_studio.store.database import Database

logger = logging.getLogger(__name__)
INTERRUPTED = "The studio stopped while this round ran; its votes are safe and train in the next round"


def reconcile(database: Database, paths: StoragePaths, *, now: Callable[[], datetime]) -> None:
    """Make memory, disk and processes agree with the database after any kind of death.

    Ends workers that outlived their studio (by pid and start time, never by name), marks their rounds
    interrupted, removes unfinished folders and version folders that no row names.
    """
    with database.read() as session:
        left_running = rounds.active_round(session=session)
        named = {record.name for record in versions.list_versions(session=session)}
    if left_running is not None and (worker := left_running.worker) is not None:
        reap_orphan(worker.pid, worker.started, worker.boot_id)
    if left_running is not None:
        # Its round is over; the votes train anew in the next one.
        paths.round(left_running.number).checkpoint.unlink(missing_ok=True)
    with database.write() as session:
        rounds.mark_interrupted(INTERRUPTED, now=now(), session=session)
    registry.sweep(paths, named=named)


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
