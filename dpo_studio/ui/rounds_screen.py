"""Rounds, versions and the schedule, as plain data and escaped HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from dpo_studio.domain.round import RoundStatus, TrainSettings
from dpo_studio.errors import BadInput
from dpo_studio.services import how_trained
from dpo_studio.services.views import GateMode, RoundsView, RoundView, ScheduleView, StudioStatus, VersionView
from dpo_studio.ui.markup import Html, element, join

ACCURACY = "heldout/rewards/accuracies"
STATUS_NAMES = {
    RoundStatus.QUEUED: "queued",
    RoundStatus.RUNNING: "training",
    RoundStatus.GATING: "being checked",
    RoundStatus.WAITING: "waiting for you",
    RoundStatus.PROMOTED: "promoted",
    RoundStatus.REJECTED: "not promoted",
    RoundStatus.FAILED: "failed",
    RoundStatus.CANCELLED: "cancelled",
    RoundStatus.INTERRUPTED: "interrupted",
}


@dataclass(frozen=True, slots=True)
class RoundsScreen:
    """One state of the page."""

    versions: Html
    history: Html
    next_round: Html
    active_round: int | None
    is_cancelling: bool
    """Of the active round: it was asked to stop and has not ended yet."""
    can_train: bool
    can_roll_back: bool


def render_rounds(view: RoundsView) -> RoundsScreen:
    """Everything on the page but the live curve."""
    status = view.status
    active = status.round.number if status.round and status.round.status.is_active else None
    return RoundsScreen(
        versions=render_versions(view.versions),
        history=render_history(view.rounds),
        next_round=render_next(status),
        active_round=active,
        is_cancelling=status.round is not None and status.round.is_cancelling,
        can_train=status.round is None,
        can_roll_back=status.live != "base",
    )


def render_next(status: StudioStatus) -> Html:
    """When the next round comes, in a sentence. Carries the state it was drawn from, for `rounds.js`."""
    return element("p", _outlook(status), data_key=state_key(status))


def state_key(status: StudioStatus) -> str:
    """Changes when anything on the page but the live curve does. `rounds.js` computes the same."""
    current = "none"
    if status.round is not None:
        current = f"{status.round.number}-{status.round.status.value}"
        current += "-cancelling" if status.round.is_cancelling else ""
        # While a round is worked on, its reason tells of interruptions.
        current += f"-{status.round.reason}" if status.round.status.is_active else ""
    return f"{status.live}/{current}/{status.new_pairs}"


def _outlook(status: StudioStatus) -> Html:
    if status.round is not None and status.round.is_cancelling:
        return join(f"Round {status.round.number} is being cancelled; it ends after the step it is in.")
    if status.round is not None and status.round.status.is_active:
        pairs = element("strong", str(status.round.num_pairs))
        return join(
            f"Round {status.round.number} learns from ", pairs, " pairs; new votes count for the next."
        )
    counted = element("strong", str(status.new_pairs))
    noun = "pair" if status.new_pairs == 1 else "pairs"
    return join(counted, f" new {noun} since the last round. ", _next_start(status))


def _next_start(status: StudioStatus) -> str | Html:
    schedule = status.schedule
    missing = max(0, schedule.min_new_pairs - status.new_pairs)
    if status.round is not None:
        return f"Round {status.round.number} waits for your decision below."
    if not schedule.enabled:
        return "Rounds start only when you press Train now."
    if missing:
        return f"The next round starts by itself after {missing} more."
    if status.next_run_at is None:
        return "Enough for a round."
    return join("Enough for a round; it starts after ", _time(status.next_run_at), ".")


def render_versions(views: Sequence[VersionView]) -> Html:
    """A table, newest first, with a button to make each version live."""
    columns = ("Version", "Pairs", "Held-out accuracy", "Made", "")
    head = element("tr", *(element("th", name, scope="col") for name in columns))
    rows = (_version_row(view) for view in reversed(views))
    return element(
        "table", element("thead", head), element("tbody", *rows), cls="ds-versions", aria_label="Versions"
    )


def render_history(views: Sequence[RoundView]) -> Html:
    """One card a round, newest first."""
    if not views:
        return element(
            "p",
            "No round yet. Vote on some pairs, then press Train now or wait for the schedule.",
            cls="ds-empty",
        )
    return element("div", *(_round_card(view, is_newest=not index) for index, view in enumerate(views)))


def schedule_of(enabled: object, interval: object, min_pairs: object, gate: object) -> ScheduleView:
    """What the visitor entered. Raises BadInput for what is no schedule; the service checks ranges."""
    if gate not in ("auto", "manual"):
        raise BadInput(f"gate: expected auto or manual, found {str(gate)[:40]!r}")
    mode: GateMode = "manual" if gate == "manual" else "auto"
    return ScheduleView(
        bool(enabled), _whole("interval_minutes", interval), _whole("min_new_pairs", min_pairs), mode
    )


def _version_row(view: VersionView) -> Html:
    live = element("span", "live", cls="ds-tag ds-tag-live") if view.is_live else Html()
    button = element(
        "button", "Make live", type="button", data_action="promote", data_name=view.name, cls="ds-small"
    )
    return element(
        "tr",
        element("th", view.name, " ", live, scope="row"),
        element("td", str(view.num_pairs) if view.round else "–"),
        element("td", _percent(view.heldout_accuracy)),
        element("td", _time(view.created_at) if view.created_at else "the beginning"),
        element("td", Html() if view.is_live else button),
        cls="ds-is-live" if view.is_live else None,
    )


def _round_card(view: RoundView, *, is_newest: bool) -> Html:
    title = element(
        "h3",
        f"Round {view.number}",
        element("span", _status_name(view), cls=f"ds-tag ds-tag-{view.status.value}"),
        element("span", f"→ {view.version}", cls="ds-soft") if view.version else Html(),
    )
    reason = element("p", view.reason, cls="ds-reason") if view.reason else Html()
    return element(
        "article",
        title,
        element("p", _round_facts(view), _time(view.finished_at or view.created_at), cls="ds-soft"),
        element("p", _settings(view.settings), cls="ds-soft ds-used"),
        reason,
        _verdict(view, is_open=is_newest),
        _how_trained(view),
        _decisions(view),
        cls="ds-round",
    )


def _status_name(view: RoundView) -> str:
    return "cancelling …" if view.is_cancelling else STATUS_NAMES[view.status]


def _settings(used: TrainSettings) -> str:
    """How a round trained, in a line; what was off is left out."""
    facts = [f"{used.loss} loss", f"beta {used.beta:g}", f"learning rate {used.learning_rate:g}"]
    facts += [f"{used.epochs} {'epoch' if used.epochs == 1 else 'epochs'}", f"rank {used.lora_rank}"]
    if used.label_smoothing:
        facts.append(f"label smoothing {used.label_smoothing:g}")
    if used.sft_weight:
        facts.append(f"SFT weight {used.sft_weight:g}")
    if used.ld_alpha < 1:
        facts.append(f"length desensitisation {used.ld_alpha:g}")
    if used.length_normalised:
        facts.append("length-normalised")
    if used.soft_labels:
        facts.append("split votes as probabilities")
    if used.early_stop_patience:
        epochs = "epoch" if used.early_stop_patience == 1 else "epochs"
        facts.append(f"early stop after {used.early_stop_patience} {epochs}")
    return " · ".join(facts)


def _round_facts(view: RoundView) -> Html:
    who = "by schedule" if view.trigger == "schedule" else f"started by {view.trigger}"
    facts = [f"{view.num_pairs} pairs", who]
    accuracy = view.metrics.get(ACCURACY)
    if accuracy is not None:
        # Never a bare percentage: 100 % of 4 pairs proves little.
        facts.insert(1, f"{_percent(accuracy)} of {view.num_heldout} held-out pairs ranked right")
    if view.started_at and view.finished_at:
        seconds = (view.finished_at - view.started_at).total_seconds()
        facts.append(f"took {how_trained.duration(seconds)}")
    return join(" · ".join(facts), " · ")


def _verdict(view: RoundView, *, is_open: bool) -> Html:
    if view.verdict is None or not view.verdict.reasons:
        return Html()
    summary = "Passed the gate" if view.verdict.passed else "Stopped by the gate"
    count = len(view.verdict.reasons)
    return _unfolding(f"{summary}: {count} checks", view.verdict.reasons, is_open=is_open)


def _how_trained(view: RoundView) -> Html:
    if view.training is None:
        return Html()
    return _unfolding("How it trained", how_trained.sentences(view.training))


def _unfolding(summary: str, sentences: Sequence[str], *, is_open: bool = False) -> Html:
    items = element("ul", *(element("li", sentence) for sentence in sentences))
    return element("details", element("summary", summary), items, open=is_open)


def _decisions(view: RoundView) -> Html:
    if view.status is not RoundStatus.WAITING:
        return Html()
    number = str(view.number)
    promote = element(
        "button", "Promote", type="button", data_action="approve", data_name=number, cls="ds-small ds-strong"
    )
    reject = element(
        "button", "Reject", type="button", data_action="reject", data_name=number, cls="ds-small"
    )
    return element("div", promote, reject, cls="ds-decisions")


def _percent(share: float | None) -> str:
    return "–" if share is None or share != share else f"{100 * share:.0f} %"


def _time(moment: datetime) -> Html:
    """UTC here; `studio.js` rewrites it in the visitor's own time."""
    return element("time", f"{moment:%Y-%m-%d %H:%M} UTC", datetime=moment.isoformat())


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise BadInput(f"{name}: expected a whole number, found {str(value)[:40]!r}")
    return int(value)
