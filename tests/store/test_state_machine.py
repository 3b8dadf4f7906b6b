"""The store against a dictionary: any order of actions, restarts between them, the same answers."""

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from dpo_studio.domain.preference import Choice
from dpo_studio.domain.round import RoundStatus, TrainSettings
from dpo_studio.errors import Conflict
from dpo_studio.store import leases, pairs, rounds, versions, votes
from dpo_studio.store.leases import LeaseHold
from dpo_studio.store.rounds import SnapshotFacts
from tests.store.makers import add_comparison, at, cast, opened

LABELERS = ("ann", "bob")
TRAINABLE = (Choice.A, Choice.B)


@dataclass
class Held:
    """The model of one labeler's current vote on one comparison."""

    vote_id: str
    choice: Choice
    is_withdrawn: bool = False
    is_excluded: bool = False
    is_used: bool = False

    @property
    def counts(self) -> bool:
        return not self.is_withdrawn and not self.is_excluded


class StoreMachine(RuleBasedStateMachine):
    """Every comparison has one labeler, so its pair is decided by one vote."""

    template: Path
    comparisons = Bundle("comparisons")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="studio-machine-"))
        self.held: dict[str, Held] = {}
        self.owner: dict[str, str] = {}
        self.revisions = 0
        self.clock = 0
        self.live = ("base", 0)
        self.published: list[str] = []
        self.lease: LeaseHold | None = None
        self.lease_until = 0

    @initialize()
    def open(self) -> None:
        path = self.folder / "studio.db"
        shutil.copyfile(self.template, path)
        self.db = opened(path)

    def teardown(self) -> None:
        self.db.close()
        shutil.rmtree(self.folder)

    @rule(target=comparisons, labeler=st.sampled_from(LABELERS))
    def show(self, labeler: str) -> str:
        with self.db.write() as session:
            comparison_id = add_comparison(session, labeler=labeler)
        self.owner[comparison_id] = labeler
        return comparison_id

    @rule(comparison_id=comparisons, choice=st.sampled_from(list(Choice)))
    def vote(self, comparison_id: str, choice: Choice) -> None:
        self.clock += 1
        labeler = self.owner[comparison_id]
        before = self.held.get(comparison_id)
        with self.db.write() as session:
            receipt = cast(session, comparison_id, choice, labeler=labeler, now=at(self.clock))
        is_same = before is not None and before.choice is choice and not before.is_withdrawn
        assert receipt.is_new is not is_same
        if not is_same:
            self.held[comparison_id] = Held(receipt.vote_id, choice)
            self.revisions += 1
        else:
            assert before is not None and receipt.vote_id == before.vote_id

    @rule(comparison_id=comparisons)
    def undo(self, comparison_id: str) -> None:
        held = self.held.get(comparison_id)
        if held is not None:
            with self.db.write() as session:
                labeler = self.owner[comparison_id]
                votes.withdraw_vote(held.vote_id, labeler=labeler, now=at(self.clock), session=session)
            held.is_withdrawn = True

    @rule(labeler=st.sampled_from(LABELERS))
    def exclude(self, labeler: str) -> None:
        with self.db.write() as session:
            votes.exclude_labeler(labeler, now=at(self.clock), session=session)
        self._mark_excluded(labeler, True)

    @rule(labeler=st.sampled_from(LABELERS))
    def include(self, labeler: str) -> None:
        with self.db.write() as session:
            votes.include_labeler(labeler, session=session)
        self._mark_excluded(labeler, False)

    @rule(end=st.sampled_from([RoundStatus.REJECTED, RoundStatus.PROMOTED, RoundStatus.FAILED]))
    def run_round(self, end: RoundStatus) -> None:
        """Snapshot, train, gate; a promoted one is published and goes live in the same transaction."""
        snapshot = list(pairs.iterate_pairs(self.db))
        with self.db.write() as session:
            number = rounds.create_round("test", TrainSettings(), now=at(self.clock), session=session).number
            used = tuple(vote_id for pair in snapshot for vote_id in pair.vote_ids)
            facts = SnapshotFacts("sha256:0", len(snapshot), len(snapshot), 0, 0, used)
            rounds.record_snapshot(number, facts, session=session)
            steps = [RoundStatus.RUNNING, RoundStatus.GATING, end]
            for status in steps:
                rounds.set_status(number, status, now=at(self.clock), session=session)
            if end is RoundStatus.PROMOTED:
                name = f"v{number}"
                versions.add_version(name, round_number=number, now=at(self.clock), session=session)
                self._set_live(name, self.live[1], session)
                self.published.append(name)
        if end is not RoundStatus.FAILED:
            for held in self.held.values():
                held.is_used = held.is_used or held.vote_id in used

    @precondition(lambda self: self.published)
    @rule(data=st.data(), is_stale=st.booleans())
    def move_pointer(self, data: st.DataObject, is_stale: bool) -> None:
        name = data.draw(st.sampled_from(["base", *self.published]))
        serial = self.live[1] - 1 if is_stale else self.live[1]
        if is_stale:
            with pytest.raises(Conflict), self.db.write() as session:
                versions.set_live(
                    name, expected_serial=serial, actor="x", now=at(self.clock), session=session
                )
        else:
            with self.db.write() as session:
                self._set_live(name, serial, session)

    @rule(owner=st.sampled_from(["one", "two"]), ttl_s=st.integers(1, 5))
    def acquire(self, owner: str, ttl_s: int) -> None:
        with self.db.write() as session:
            hold = leases.acquire("training", owner, ttl_s=ttl_s, now=at(self.clock), session=session)
        assert (hold is not None) is (self.clock >= self.lease_until)
        if hold is not None:
            assert self.lease is None or hold.token == self.lease.token + 1
            self.lease, self.lease_until = hold, self.clock + ttl_s

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self.clock += seconds

    @rule()
    def restart(self) -> None:
        self.db.close()
        self.db = opened(self.folder / "studio.db")

    @invariant()
    def pairs_are_those_of_the_model(self) -> None:
        expected = {
            (f"{comparison_id}:vote", held.vote_id)
            for comparison_id, held in self.held.items()
            if held.counts and held.choice in TRAINABLE
        }
        new = sum(
            held.counts and not held.is_used and held.choice in TRAINABLE for held in self.held.values()
        )
        found = list(pairs.iterate_pairs(self.db))
        with self.db.read() as session:
            assert pairs.count_new(session=session) == new
            assert versions.get_live(session=session) == versions.LiveState(*self.live)
            total = session.connection().exec_driver_sql("SELECT count(*) FROM vote").scalar_one()
        assert {(pair.pair_id, pair.vote_ids[0]) for pair in found} == expected
        assert total == self.revisions

    @invariant()
    def the_lease_is_held_exactly_until_its_end(self) -> None:
        if self.lease is not None:
            with self.db.read() as session:
                is_held = leases.is_held(self.lease, now=at(self.clock), session=session)
            assert is_held is (self.clock < self.lease_until)

    def _mark_excluded(self, labeler: str, is_excluded: bool) -> None:
        for comparison_id, held in self.held.items():
            if self.owner[comparison_id] == labeler:
                held.is_excluded = is_excluded

    def _set_live(self, name: str, serial: int, session: Any) -> None:
        versions.set_live(name, expected_serial=serial, actor="x", now=at(self.clock), session=session)
        self.live = (name, serial + 1)


@pytest.mark.integration
def test_any_order_of_actions_leaves_what_the_model_says(template: Path) -> None:
    class Machine(StoreMachine):
        pass

    Machine.template = template
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )
