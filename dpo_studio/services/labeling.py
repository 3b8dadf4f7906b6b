"""LabelingService: comparisons out, votes in. A vote is acknowledged only once it is on disk.

Nothing that a browser holds is believed: which side was which, whose comparison it is and whether it is
complete are read from the database in every call.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime, timedelta

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import Choice
from dpo_studio.errors import Conflict, NotFound
from dpo_studio.services.comparison_maker import ComparisonMaker, ComparisonOrder, Source
from dpo_studio.services.deployment import DeploymentService
from dpo_studio.services.pair_factory import PairFactory
from dpo_studio.services.views import ComparisonView, LabelProgress, VoteView
from dpo_studio.store import comparisons, pairs, prompts, votes
from dpo_studio.store.comparisons import ComparisonRecord
from dpo_studio.store.database import Database
from dpo_studio.store.votes import VoteInput


class LabelingService:
    """What a labeler does, for hours: next, vote, undo."""

    def __init__(
        self,
        database: Database,
        maker: ComparisonMaker,
        factory: PairFactory,
        deployment: DeploymentService,
        *,
        min_new_pairs: Callable[[], int],
        now: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._maker = maker
        self._factory = factory
        self._deployment = deployment
        self._min_new_pairs = min_new_pairs
        self._now = now

    async def stream_next(
        self, labeler: str, messages: tuple[Message, ...] | None = None, *, source: Source = "own"
    ) -> AsyncGenerator[ComparisonView, None]:
        """The next comparison for `labeler`: from the own prompt `messages`, or from the queue.

        From the queue: the one left open, else one that waits complete, else one written while the
        caller watches. The last view is `ready`. Closing the generator cancels the writing.
        """
        self._factory.touch(labeler)
        if messages is None:
            waiting = await asyncio.to_thread(self._waiting, labeler)
            if waiting is not None:
                yield waiting
                return
        order = await asyncio.to_thread(self._order, labeler, messages, source)
        async with aclosing(self._maker.make(order)) as views:
            async for view in views:
                yield view

    async def next_ready(
        self, labeler: str, messages: tuple[Message, ...] | None = None, *, source: Source = "api"
    ) -> ComparisonView:
        """Like `stream_next`, waiting for the complete comparison."""
        async with aclosing(self.stream_next(labeler, messages, source=source)) as views:
            view = [view async for view in views][-1]
        assert view.ready
        return view

    def current(self, labeler: str) -> ComparisonView | None:
        """The comparison that was shown to `labeler` and not yet judged; survives any restart."""
        with self._database.read() as session:
            record = comparisons.open_for(labeler, session=session)
        return _view(record) if record else None

    def vote(
        self,
        labeler: str,
        comparison_id: str,
        choice: Choice,
        *,
        strength: int | None = None,
        reasons: tuple[str, ...] = (),
        note: str | None = None,
        edited: str | None = None,
    ) -> VoteView:
        """Store a judgement durably. The same vote twice is one vote; another choice is a revision.

        Raises NotFound for a comparison that is not this labeler's, BadInput for values out of range,
        StorageError when the disk refuses: then nothing was saved.
        """
        given = VoteInput(
            comparison_id=comparison_id,
            choice=choice,
            strength=strength,
            reasons=reasons,
            note=note,
            edited=edited,
        )
        with self._database.write() as session:
            receipt = votes.cast_vote(given, labeler=labeler, now=self._now(), session=session)
        self._factory.touch(labeler)
        return VoteView(
            receipt.vote_id,
            comparison_id,
            choice.value,
            receipt.version_a,
            receipt.version_b,
            receipt.is_new,
        )

    def undo(self, labeler: str, vote_id: str | None = None) -> ComparisonView:
        """Withdraw a vote (the newest one when None) and open its comparison again.

        The vote stays in the history as withdrawn. Whatever was shown meanwhile waits its turn.
        """
        with self._database.write() as session:
            if vote_id is None:
                latest = votes.latest_vote(labeler, session=session)
                if latest is None:
                    raise Conflict("There is no vote to undo")
                vote_id = latest.vote_id
            comparisons.put_back_shown(labeler, session=session)
            comparison_id = votes.withdraw_vote(vote_id, labeler=labeler, now=self._now(), session=session)
            record = comparisons.get_comparison(comparison_id, session=session)
        if record is None:
            raise NotFound(f"comparison: {comparison_id} is gone")
        return _view(record)

    def progress(self, labeler: str) -> LabelProgress:
        """Counts since midnight UTC and in total, own and the team's."""
        now = self._now()
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        with self._database.read() as session:
            counts = votes.counts(labeler, since=midnight, session=session)
            new_pairs = pairs.count_new(until=now + timedelta(seconds=1), session=session)
            ready = comparisons.count_ready(labeler, session=session)
        return LabelProgress(
            counts.today, counts.total, counts.team_total, new_pairs, self._min_new_pairs(), ready
        )

    def _waiting(self, labeler: str) -> ComparisonView | None:
        return self.current(labeler) or self._take_ready(labeler)

    def _take_ready(self, labeler: str) -> ComparisonView | None:
        with self._database.write() as session:
            # One may have been finished for the old version after the swap had dropped its like.
            comparisons.drop_superseded(self._deployment.live(), session=session)
            record = comparisons.take_ready(labeler, now=self._now(), session=session)
        return _view(record) if record else None

    def _order(self, labeler: str, messages: tuple[Message, ...] | None, source: Source) -> ComparisonOrder:
        if messages is not None:
            return ComparisonOrder(messages, labeler, source)
        with self._database.read() as session:
            prompt = prompts.next_prompt(labeler, session=session)
        if prompt is None:
            raise NotFound("The prompt queue is empty: write a prompt, or import some")
        return ComparisonOrder(prompt.messages, labeler, "queue", prompt_id=prompt.id)


def _view(record: ComparisonRecord) -> ComparisonView:
    return ComparisonView(record.id, record.messages, record.a.text, record.b.text, True, record.source)
