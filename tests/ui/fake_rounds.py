"""Rounds of the fake studio: they train in seconds and always pass the gate."""

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Thread, Timer
from time import sleep
from typing import TYPE_CHECKING, Any

from dpo_studio.domain.round import RoundStatus, StepProgress, TrainingFacts, TrainSettings, Verdict
from dpo_studio.errors import BadInput, Conflict, NotFound
from dpo_studio.services.training_choice import applied
from dpo_studio.services.views import RoundsView, RoundView, ScheduleView, StudioStatus, VersionView
from tests.fakes import FakeTraining

if TYPE_CHECKING:
    from tests.ui.fakes import World


class FakeRounds:
    """Rounds that take `num_steps * step_s` seconds and always pass the gate."""

    num_steps = 40

    def __init__(self, world: "World") -> None:
        self.world = world

    @property
    def training(self) -> FakeTraining:
        return self.world.training

    def start(self, *, trigger: str, until: datetime | None = None) -> RoundView:
        self.world.called("start", trigger, until)
        if self._current() is not None:
            raise Conflict("round: another one is running; wait for it or cancel it")
        if self.world.new_pairs == 0:
            raise BadInput(
                "round: expected at least one pair to train on, found none; vote on some comparisons"
            )
        number = len(self.world.rounds) + 1
        self.world.rounds.append(
            fake_round(
                number,
                trigger=trigger,
                num_pairs=self.world.new_pairs,
                settings=applied(self.training.choice, TrainSettings()),
            )
        )
        Thread(target=self._train, args=(number,), daemon=True).start()
        return self.get(number)

    def _train(self, number: int) -> None:
        self.world.steps[number] = steps = []
        for step in range(1, self.num_steps + 1):
            sleep(self.world.step_s)
            steps.append(fake_step(step, self.num_steps))
            if self._change(number, progress=steps[-1]).status is RoundStatus.CANCELLED:
                return
        version = f"v{number}"
        self.world.versions.append(VersionView(version, number, datetime.now(UTC), False, True, 41, 0.71))
        status = RoundStatus.WAITING
        if self.world.schedule.gate == "auto":
            status, self.world.live = RoundStatus.PROMOTED, version
        self.world.new_pairs = 0
        self._change(
            number,
            status=status,
            version=version,
            verdict=FAKE_VERDICT,
            training=FAKE_FACTS,
            metrics={"heldout/rewards/accuracies": 0.71, "loss": steps[-1].metrics["loss"]},
            finished_at=datetime.now(UTC),
            progress=None,
            reason="Promoted by the gate",
        )

    def cancel(self, number: int) -> RoundView:
        self.world.called("cancel", number)
        if not self.world.is_cancelling_slowly:
            return self._end_cancelled(number)
        Timer(1.5, self._end_cancelled, (number,)).start()
        return self._change(number, is_cancelling=True)

    def _end_cancelled(self, number: int) -> RoundView:
        ended: dict[str, Any] = {"reason": "Cancelled", "progress": None, "is_cancelling": False}
        return self._change(number, status=RoundStatus.CANCELLED, **ended)

    async def approve(self, number: int, *, actor: str) -> RoundView:
        self.world.called("approve", number, actor)
        view = self._change(number, status=RoundStatus.PROMOTED)
        self.world.live = view.version or "base"
        return view

    def reject(self, number: int, *, actor: str) -> RoundView:
        self.world.called("reject", number, actor)
        return self._change(number, status=RoundStatus.REJECTED, reason=f"Turned down by {actor}")

    def get(self, number: int) -> RoundView:
        for view in self.world.rounds:
            if view.number == number:
                return view
        raise NotFound(f"round: expected a number that exists, found {number}")

    def list(self) -> list[RoundView]:
        self.world.called("list")
        return list(reversed(self.world.rounds))

    def steps(self, number: int, since: int = 0) -> Sequence[StepProgress]:
        return [step for step in self.world.steps.get(number, []) if step.step > since]

    def status(self) -> StudioStatus:
        self.world.called("status")
        now = datetime.now(UTC)
        return StudioStatus(
            self.world.live,
            self.world.engine,
            self.world.new_pairs,
            self.world.schedule,
            self._current(),
            now + timedelta(minutes=4) if self.world.schedule.enabled else None,
            "/tmp/storage",
        )

    def overview(self) -> RoundsView:
        base = VersionView("base", None, None, False, True, 0, None)
        versions = [replace(one, is_live=one.name == self.world.live) for one in [base, *self.world.versions]]
        return RoundsView(self.status(), tuple(self.list()), tuple(versions))

    def schedule(self) -> ScheduleView:
        return self.world.schedule

    def set_schedule(self, schedule: ScheduleView, *, actor: str) -> ScheduleView:
        self.world.called("set_schedule", schedule, actor)
        if schedule.interval_minutes < 1:
            raise BadInput(f"interval_minutes: expected at least 1, found {schedule.interval_minutes}")
        self.world.schedule = schedule
        return schedule

    def _current(self) -> RoundView | None:
        for view in self.world.rounds:
            if view.status.is_active or view.status is RoundStatus.WAITING:
                return view
        return None

    def _change(self, number: int, **changes: Any) -> RoundView:
        view = self.get(number)
        if view.status is not RoundStatus.CANCELLED:
            view = replace(view, **changes)
            self.world.rounds[number - 1] = view
        return view


def fake_round(
    number: int,
    *,
    trigger: str = "local",
    num_pairs: int = 48,
    status: RoundStatus = RoundStatus.RUNNING,
    **changes: Any,
) -> RoundView:
    """A round that has just begun, but for `changes`."""
    now = datetime.now(UTC)
    heldout = num_pairs // 7
    view = RoundView(
        number=number,
        status=status,
        trigger=trigger,
        reason="",
        num_pairs=num_pairs,
        num_train=num_pairs - heldout,
        num_heldout=heldout,
        settings=TrainSettings(),
        metrics={},
        verdict=None,
        version=None,
        created_at=now,
        started_at=now,
        finished_at=None,
    )
    return replace(view, **changes)


FAKE_VERDICT = Verdict(
    True,
    (
        "Held-out accuracy 71 % on 7 pairs; asked for more than 50 %.",
        "Answers end by themselves in 100 % of probes; asked for at least 90 %.",
        "KL from base 0.08 nats per token; asked for at most 0.30.",
    ),
)


FAKE_FACTS = TrainingFacts(
    layout="Trained in the prefix-shared layout.",
    notes=("The adapter after step 30 of 40 was kept: its held-out loss of 0.4211 was the lowest.",),
    num_truncated=2,
    num_dropped=0,
    num_reference_computed=9,
    num_reference_known=39,
    train_seconds=83.0,
)


def fake_step(step: int, num_steps: int) -> StepProgress:
    """A step of a believable run."""
    done = step / num_steps
    noise = random.Random(step).gauss(0, 0.015)
    metrics = {
        "loss": 0.693 * (1 - 0.55 * done) + noise,
        "rewards/accuracies": min(1.0, 0.5 + 0.45 * done + noise),
        "rewards/margins": 1.6 * done + noise,
        "rewards/chosen": 0.7 * done + noise,
        "rewards/rejected": -0.9 * done - noise,
    }
    return StepProgress("training", step, num_steps, datetime.now(UTC).timestamp(), metrics)
