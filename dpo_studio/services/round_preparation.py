"""RoundPreparation: from the votes in the database to a round folder that a worker can train.

The row comes first and gives the number; the folder follows; `job.json` is written last. A crash between
leaves a queued row without a job, which the next boot marks interrupted.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from dpo_studio import __version__
from dpo_studio.domain.chat import BASE, ChatEngine
from dpo_studio.domain.codec import to_json
from dpo_studio.domain.preference import PreferencePair
from dpo_studio.domain.round import RoundJob, RoundStatus, TrainSettings
from dpo_studio.errors import BadInput, StudioError
from dpo_studio.files import write_json
from dpo_studio.paths import StoragePaths
from dpo_studio.rounds.snapshot import Snapshot, write_snapshot
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.settings import Settings
from dpo_studio.store import pairs, rounds
from dpo_studio.store.database import Database
from dpo_studio.store.rounds import SnapshotFacts


class RoundPreparation:
    """Writes snapshots; decides nothing about when."""

    def __init__(
        self,
        database: Database,
        engine: ChatEngine,
        deployment: DeploymentService,
        settings: Settings,
        *,
        probe_prompts: Sequence[str],
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._engine = engine
        self._deployment = deployment
        self._settings = settings
        self._probe_prompts = tuple(probe_prompts)
        self._now = now

    @property
    def _paths(self) -> StoragePaths:
        return self._settings.paths

    def prepare(self, *, trigger: str, until: datetime, settings: TrainSettings) -> int:
        """Queue a round over every eligible pair of votes given before `until`; returns its number.

        Imported rankings of more than two responses are frozen whole for the plackett_luce loss, and as all
        of their pairs for every other.

        Raises Conflict when a round is active, BadInput when there is nothing to train on. The round is
        marked failed, with the reason, when its folder cannot be written.
        """
        whole = settings.loss == "plackett_luce"
        eligible = list(pairs.iterate_pairs(self._database, until=until, whole_rankings=whole))
        with self._database.read() as session:
            new_pairs = pairs.count_new(until=until, session=session)
        if not eligible:
            raise BadInput(
                "Expected at least one preference to train on, found none; vote on some comparisons first"
            )
        with self._database.write() as session:
            number = rounds.create_round(trigger, settings, now=self._now(), session=session).number
        try:
            snapshot = write_snapshot(eligible, self._paths.round(number), self._settings.heldout_share)
            write_json(self._paths.round(number).job, to_json(self._job(number, snapshot, settings)))
            self._record(number, eligible, snapshot, new_pairs)
        except (StudioError, OSError) as error:
            self._fail(number, f"The round's data could not be written: {error}")
            raise
        return number

    def _job(self, number: int, snapshot: Snapshot, settings: TrainSettings) -> RoundJob:
        live = self._deployment.live()
        live_adapter = None if live == BASE else str(self._paths.version(live))
        template = self._settings.chat_template
        return RoundJob(
            round=number,
            model=self._settings.model,
            model_sha256=self._engine.status.model_sha256,
            settings=settings,
            train_sha256=snapshot.train_sha256,
            heldout_sha256=snapshot.heldout_sha256,
            num_train=snapshot.num_train,
            num_heldout=snapshot.num_heldout,
            start_adapter=live_adapter if settings.start_from == "live" else None,
            live_adapter=live_adapter,
            probe_prompts=self._probe_prompts,
            chat_template=str(template.resolve()) if template else None,
            device=self._settings.device,
            dtype=self._settings.dtype,
            reference_cache=str(self._paths.reference_cache),
            code_version=__version__,
        )

    def _record(
        self, number: int, eligible: Sequence[PreferencePair], snapshot: Snapshot, new_pairs: int
    ) -> None:
        facts = SnapshotFacts(
            dataset_sha256=snapshot.dataset_sha256,
            num_pairs=len(eligible),
            num_train=snapshot.num_train,
            num_heldout=snapshot.num_heldout,
            new_pairs=new_pairs,
            vote_ids=tuple(vote_id for pair in eligible for vote_id in pair.vote_ids),
        )
        with self._database.write() as session:
            rounds.record_snapshot(number, facts, session=session)

    def _fail(self, number: int, reason: str) -> None:
        with self._database.write() as session:
            rounds.set_status(number, RoundStatus.FAILED, reason=reason, now=self._now(), session=session)
