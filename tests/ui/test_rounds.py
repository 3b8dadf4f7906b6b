"""Rounds: what the page offers in each state, who acts, and that reasons stay text."""

import threading
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_studio.domain.round import RoundStatus, TrainSettings, Verdict
from dpo_studio.errors import BadInput, ModelError
from dpo_studio.services.views import RoundsView, ScheduleView, StudioStatus, VersionView
from dpo_studio.ui.rounds_page import NUM_OUTPUTS, RoundsHandlers, to_updates
from dpo_studio.ui.rounds_screen import (
    render_history,
    render_next,
    render_rounds,
    render_versions,
    schedule_of,
    state_key,
)
from tests.ui.fake_rounds import FAKE_FACTS, FAKE_VERDICT, fake_round
from tests.ui.fakes import READY, SCHEDULE, World
from tests.ui.payloads import PAYLOADS
from tests.ui.test_markup import Seen

CANCEL_OUTPUT = 5
STATUS = StudioStatus("base", READY, 12, SCHEDULE, None, None, "/tmp")
V1 = VersionView("v1", 1, datetime(2026, 1, 1, tzinfo=UTC), False, True, 40, 0.7)
BASE = VersionView("base", None, None, True, True, 0, None)


@pytest.fixture
def handlers(studio: Any) -> RoundsHandlers:
    return RoundsHandlers(studio.rounds, studio.deployment)


def pressed(action: str, name: str) -> Any:
    return SimpleNamespace(_data={"action": action, "name": name})


def text_of(html: str) -> str:
    return Seen(html).text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "starts by itself after 18 more"),
        ({"new_pairs": 30}, "Enough for a round"),
        ({"round": fake_round(4, num_pairs=48)}, "Round 4 learns from 48 pairs"),
        ({"new_pairs": 1}, "1 new pair since"),
        ({"schedule": replace(SCHEDULE, enabled=False)}, "only when you press Train now"),
        ({"round": fake_round(4, status=RoundStatus.WAITING)}, "Round 4 waits for your decision"),
        (
            {"new_pairs": 40, "next_run_at": datetime(2026, 1, 1, 9, 30, tzinfo=UTC)},
            "it starts after 2026-01-01 09:30 UTC",
        ),
    ],
)
def test_the_next_round_is_told_in_a_sentence(change: dict[str, Any], words: str) -> None:
    assert words in text_of(render_next(replace(STATUS, **change)))


def test_train_now_rests_while_a_round_is_active_and_cancel_names_it() -> None:
    screen = render_rounds(RoundsView(replace(STATUS, round=fake_round(7)), (), ()))
    assert (screen.can_train, screen.active_round, screen.can_roll_back) == (False, 7, False)
    idle = render_rounds(RoundsView(replace(STATUS, live="v1"), (), ()))
    assert (idle.can_train, idle.active_round, idle.can_roll_back) == (True, None, True)


def test_a_round_that_was_asked_to_stop_says_so_everywhere() -> None:
    """Between the click and the end of the round the page looked as if nothing had been asked."""
    view = replace(fake_round(7), is_cancelling=True)
    screen = render_rounds(RoundsView(replace(STATUS, round=view), (view,), ()))
    assert "cancelling …" in text_of(screen.history)
    assert "Round 7 is being cancelled" in text_of(screen.next_round)
    cancel = to_updates(screen, "")[CANCEL_OUTPUT]
    assert (cancel["visible"], cancel["interactive"], cancel["value"]) == (True, False, "Cancelling …")
    assert state_key(replace(STATUS, round=view)) != state_key(replace(STATUS, round=fake_round(7)))


def test_the_page_is_drawn_again_when_a_round_has_gone_on() -> None:
    """Its status is the same as before, and its card still said only that it was interrupted."""
    keys = {
        state_key(replace(STATUS, round=fake_round(7, reason=reason)))
        for reason in ("", "Interrupted once", "Went on from step 9 after an interruption")
    }
    assert len(keys) == 3


def test_a_round_shows_the_settings_it_used_and_leaves_out_what_was_off() -> None:
    plain = fake_round(3, settings=TrainSettings(epochs=1))
    assert "sigmoid loss · beta 0.1 · learning rate 0.002 · 1 epoch · rank 16" in text_of(
        render_history([plain])
    )
    assert "smoothing" not in text_of(render_history([plain]))
    used = replace(plain, settings=TrainSettings(loss="robust", label_smoothing=0.1, sft_weight=0.5))
    assert "label smoothing 0.1 · SFT weight 0.5" in text_of(render_history([used]))
    settings = TrainSettings(early_stop_patience=2, soft_labels=True, ld_alpha=0.5, length_normalised=True)
    assert (
        "rank 16 · length desensitisation 0.5 · length-normalised · split votes as probabilities"
        " · early stop after 2 epochs"
    ) in text_of(render_history([replace(plain, settings=settings)]))


def test_a_round_unfolds_how_it_trained_and_an_old_one_has_nothing_to_unfold() -> None:
    view = fake_round(3, status=RoundStatus.PROMOTED, verdict=FAKE_VERDICT)
    assert "How it trained" not in text_of(render_history([view]))
    seen = Seen(render_history([replace(view, training=FAKE_FACTS)]))
    gate, trained = [attributes for tag, attributes in seen.tags if tag == "details"]
    assert "open" in gate and "open" not in trained, "the gate's checks are what the newest card shows"
    assert "How it trained" in seen.text
    assert FAKE_FACTS.layout in seen.text and FAKE_FACTS.notes[0] in seen.text
    assert "2 pairs were too long and cut to fit." in seen.text


def test_every_version_but_the_live_one_can_be_made_live() -> None:
    buttons = [attributes for tag, attributes in Seen(render_versions([BASE, V1])).tags if tag == "button"]
    assert [(button["data-action"], button["data-name"]) for button in buttons] == [("promote", "v1")]


@pytest.mark.parametrize("status", list(RoundStatus))
def test_only_a_waiting_round_asks_for_a_decision(status: RoundStatus) -> None:
    seen = Seen(render_history([fake_round(3, status=status, version="v3")]))
    actions = [attributes["data-action"] for tag, attributes in seen.tags if tag == "button"]
    assert actions == (["approve", "reject"] if status is RoundStatus.WAITING else [])


def test_a_failed_round_shows_its_reason() -> None:
    view = fake_round(3, status=RoundStatus.FAILED, reason="The loss became NaN at step 12")
    assert "The loss became NaN at step 12" in text_of(render_history([view]))


def test_a_round_shows_pairs_accuracy_and_each_check() -> None:
    view = fake_round(
        3,
        status=RoundStatus.REJECTED,
        num_pairs=49,
        verdict=Verdict(False, FAKE_VERDICT.reasons),
        metrics={"heldout/rewards/accuracies": 0.714},
    )
    text = text_of(render_history([view]))
    assert "49 pairs · 71 % of 7 held-out pairs ranked right" in text
    assert "Stopped by the gate: 3 checks" in text
    assert all(reason in text for reason in FAKE_VERDICT.reasons)


def test_without_rounds_the_page_says_what_to_do() -> None:
    assert "Vote on some pairs" in text_of(render_history([]))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_payload_becomes_an_element_of_the_history(payload: str) -> None:
    plain = fake_round(
        1, status=RoundStatus.FAILED, reason="x", trigger="x", version="x", verdict=Verdict(False, ("x",))
    )
    plain = replace(plain, training=replace(FAKE_FACTS, notes=("x",)))
    hostile = replace(
        plain,
        reason=payload,
        trigger=payload,
        version=payload,
        verdict=Verdict(False, (payload,)),
        training=replace(FAKE_FACTS, layout=payload, notes=(payload,)),
    )
    assert Seen(render_history([hostile])).tags == Seen(render_history([plain])).tags


@pytest.mark.parametrize(
    ("interval", "pairs", "gate"), [(1.5, 3, "auto"), (None, 3, "auto"), (5, "x", "auto"), (5, 3, "none")]
)
def test_a_form_that_is_no_schedule_is_refused(interval: Any, pairs: Any, gate: Any) -> None:
    with pytest.raises(BadInput):
        schedule_of(True, interval, pairs, gate)


def test_train_now_starts_a_round_under_the_callers_name(
    handlers: RoundsHandlers, world: World, request_of_ann: Any
) -> None:
    world.new_pairs = 5
    update = handlers.train(request_of_ann)
    assert update[0] == "Round 1 has started&#46;"
    assert world.rounds[0].trigger == "ann"
    assert len(update) == NUM_OUTPUTS


def test_train_now_without_pairs_is_a_sentence(handlers: RoundsHandlers, request_of_ann: Any) -> None:
    assert "expected at least one pair" in handlers.train(request_of_ann)[0]


def test_cancel_reads_the_number_from_its_button(handlers: RoundsHandlers, world: World) -> None:
    world.rounds.append(fake_round(1))
    handlers.cancel("Cancel round 1")
    assert world.rounds[0].status is RoundStatus.CANCELLED
    assert "expected its number" in handlers.cancel("Cancel round -1 <b>")[0]


def test_the_schedule_is_saved_whole_or_not_at_all(
    handlers: RoundsHandlers, world: World, request_of_ann: Any
) -> None:
    handlers.save(False, 10, 25, "manual", request_of_ann)
    assert world.schedule == ScheduleView(False, 10, 25, "manual")
    assert "interval" in handlers.save(True, 0, 25, "auto", request_of_ann)[0]
    assert world.schedule == ScheduleView(False, 10, 25, "manual")
    assert [field["value"] for field in handlers.schedule()] == [False, 10, 25, "manual"]
    assert all(field["interactive"] for field in handlers.schedule())


@pytest.mark.parametrize(
    ("action", "name", "call"),
    [
        ("promote", "v1", ("promote", "v1", "ann")),
        ("approve", "1", ("approve", 1, "ann")),
        ("reject", "1", ("reject", 1, "ann")),
    ],
)
async def test_a_button_on_the_page_acts_under_the_callers_name(
    handlers: RoundsHandlers, world: World, request_of_ann: Any, action: str, name: str, call: tuple[Any, ...]
) -> None:
    world.versions.append(V1)
    world.rounds.append(fake_round(1, status=RoundStatus.WAITING, version="v1"))
    update = await handlers.act(pressed(action, name), request_of_ann)
    assert call in world.calls
    assert len(update) == NUM_OUTPUTS


@pytest.mark.parametrize(
    "event",
    [pressed("delete", "v1"), pressed("approve", "x"), SimpleNamespace(_data=None), pressed("promote", "v9")],
)
async def test_a_forged_button_is_a_sentence_and_changes_nothing(
    handlers: RoundsHandlers, world: World, request_of_ann: Any, event: Any
) -> None:
    update = await handlers.act(event, request_of_ann)
    assert "expected" in update[0]
    assert world.live == "base"


async def test_a_broken_version_stays_down_and_says_why(
    handlers: RoundsHandlers, world: World, request_of_ann: Any
) -> None:
    world.fail_with = ModelError("v1 answered a smoke prompt with nothing")
    update = await handlers.act(pressed("promote", "v1"), request_of_ann)
    assert "answered a smoke prompt with nothing" in update[0]
    assert world.live == "base"


@pytest.mark.parametrize("action", ["reject", "roll back"])
async def test_an_action_leaves_the_event_loop_to_others(
    handlers: RoundsHandlers, world: World, request_of_ann: Any, action: str
) -> None:
    """The page was read, and a round turned down, in the thread that serves everyone."""
    world.live = "v1"
    world.rounds.append(fake_round(1, status=RoundStatus.WAITING, version="v1"))
    in_threads: dict[str, bool] = {}
    world.on_call = lambda name: in_threads.update({name: threading.current_thread() is not serving})
    serving = threading.current_thread()
    if action == "reject":
        await handlers.act(pressed("reject", "1"), request_of_ann)
        assert in_threads["reject"]
    else:
        await handlers.roll_back(request_of_ann)
    assert in_threads["status"] and in_threads["list"]


async def test_roll_back_goes_to_the_version_before(
    handlers: RoundsHandlers, world: World, request_of_ann: Any
) -> None:
    world.live = "v1"
    assert (await handlers.roll_back(request_of_ann))[0] == "base is live again&#46;"
    assert "Nothing to roll back" in (await handlers.roll_back(request_of_ann))[0]
