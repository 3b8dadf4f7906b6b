"""Interruptions of a round: what cut it off, how often, and from which step it went on.

A round that lost its worker or its studio goes back to the queue, where a worker on the same folder takes it
up from its checkpoint; at most `MOST` times, since what kills it every time is no accident. The audit log is
the count: each event is appended in the transaction that puts the round back, so a crash counts once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlmodel import Session

from dpo_studio.domain.round import RoundStatus, StepProgress
from dpo_studio.store import audit, rounds
from dpo_studio.store.leases import LeaseHold

MOST = 3
"""How often one round is gone on with."""
TOO_MANY = "it had gone on after three interruptions already"
CUT_OFF = "interrupt"
WENT_ON = "go on"
ACTOR = "studio"
_TIMES = ("never", "once", "twice", "three times")
_INTERRUPTIONS = ("no interruption", "an interruption", "two interruptions", "three interruptions")


@dataclass(frozen=True, slots=True)
class Interruptions:
    """Those of one round."""

    count: int = 0
    steps: tuple[int, ...] = ()
    """After how many steps training went on, where it came that far; 0 is from the start."""

    def in_words(self) -> str:
        """A sentence without its full stop; empty for none."""
        if not self.count:
            return ""
        if not self.steps:
            return f"Interrupted {_TIMES[self.count]}"
        places = [f"from step {step}" if step else "from the start" for step in self.steps]
        return f"Went on {', then '.join(places)} after {_INTERRUPTIONS[self.count]}"


def of_rounds(session: Session) -> Mapping[int, Interruptions]:
    """By number, the rounds that were ever interrupted."""
    found: dict[int, Interruptions] = {}
    for event in audit.events_of((CUT_OFF, WENT_ON), session=session):
        number = int(event.details["round"])
        before = found.get(number, Interruptions())
        if event.action == CUT_OFF:
            found[number] = replace(before, count=before.count + 1)
        else:
            found[number] = replace(before, steps=(*before.steps, int(event.details["step"])))
    return found


def put_back(
    number: int, cause: str, *, now: datetime, session: Session, lease: LeaseHold | None = None
) -> bool:
    """Count an interruption and queue the round again; False, with nothing done, when there were `MOST`.

    Raises Conflict when its status or a lost `lease` forbids it.
    """
    before = of_rounds(session).get(number, Interruptions())
    if before.count >= MOST:
        return False
    rounds.set_status(number, RoundStatus.QUEUED, lease=lease, now=now, session=session)
    words = f"Interrupted {_TIMES[before.count + 1]}"
    _record(CUT_OFF, number, {"text": words, "reason": cause}, now, session)
    return True


def go_on(number: int, step: int, taken: Sequence[StepProgress], *, now: datetime, session: Session) -> None:
    """Say after which step training goes on; what was recorded beyond it comes anew.

    taken: the steps up to there, in order. The last of them may have been missed by a studio that died first.
    """
    rounds.drop_steps(number, after=step, session=session)
    last = max((known.step for known in rounds.list_steps(number, session=session)), default=0)
    rounds.add_steps(number, [missed for missed in taken if missed.step > last], session=session)
    before = of_rounds(session).get(number, Interruptions())
    words = replace(before, steps=(step,)).in_words()
    _record(WENT_ON, number, {"text": words, "step": step}, now, session)


def _record(action: str, number: int, details: Mapping[str, object], now: datetime, session: Session) -> None:
    audit.record(
        actor=ACTOR,
        action=action,
        subject=f"round {number}",
        details={"round": number, **details},
        now=now,
        session=session,
    )
