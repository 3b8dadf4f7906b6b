"""What a labeler is promised: blind, own, durable, once, undoable."""

import asyncio
from contextlib import aclosing, suppress

import pytest

from dpo_studio.domain.chat import Message
from dpo_studio.domain.preference import Choice
from dpo_studio.errors import BadInput, Conflict, EngineUnavailable, NotFound, StudioError
from dpo_studio.services.views import ComparisonView
from tests.services.conftest import Bench, said


async def run_factory(bench: Bench, *, until_ready: int) -> None:
    bench.factory.touch("ann")
    task = asyncio.create_task(bench.factory.run())
    async with asyncio.timeout(5):
        while bench.labeling.progress("ann").ready < until_ready:
            await asyncio.sleep(0.01)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_comparison_streams_and_ends_ready(bench: Bench) -> None:
    views = [view async for view in bench.labeling.stream_next("ann", said("hello there"))]
    assert (views[0].a, views[0].b, views[0].ready) == ("", "", False)
    assert views[-1].ready and views[-1].a and views[-1].b and views[-1].a != views[-1].b
    assert {view.id for view in views} == {views[-1].id}


async def test_votes_name_the_versions_only_afterwards(bench: Bench) -> None:
    view = await bench.labeling.next_ready("ann")
    assert not hasattr(view, "version_a")
    receipt = bench.labeling.vote("ann", view.id, Choice.A)
    assert (receipt.version_a, receipt.version_b) == ("base", "base")


async def test_the_same_vote_twice_is_one_vote(bench: Bench) -> None:
    view = await bench.labeling.next_ready("ann")
    first = bench.labeling.vote("ann", view.id, Choice.A)
    again = bench.labeling.vote("ann", view.id, Choice.A)
    assert (first.vote_id, first.is_new, again.is_new) == (again.vote_id, True, False)
    assert bench.labeling.progress("ann").total == 1


async def test_a_changed_mind_counts_once(bench: Bench) -> None:
    view = await bench.labeling.next_ready("ann")
    bench.labeling.vote("ann", view.id, Choice.A)
    bench.labeling.vote("ann", view.id, Choice.B)
    assert bench.labeling.progress("ann").total == 1


async def test_a_foreign_comparison_is_not_found(bench: Bench) -> None:
    view = await bench.labeling.next_ready("ann")
    with pytest.raises(NotFound):
        bench.labeling.vote("bob", view.id, Choice.A)
    assert bench.labeling.progress("bob").total == 0


async def test_an_unfinished_comparison_cannot_be_judged(bench: Bench) -> None:
    bench.engine.hold()
    async with aclosing(bench.labeling.stream_next("ann", said("hello"))) as views:
        view = await anext(views)
        with pytest.raises(NotFound):
            bench.labeling.vote("ann", view.id, Choice.A)


async def test_a_comparison_cut_off_leaves_nothing(bench: Bench) -> None:
    bench.engine.hold()
    async with aclosing(bench.labeling.stream_next("ann", said("hello"))) as views:
        await anext(views)
    assert bench.labeling.current("ann") is None


async def test_a_reload_finds_the_open_comparison(bench: Bench) -> None:
    view = await bench.labeling.next_ready("ann")
    assert bench.labeling.current("ann") == view
    assert await bench.labeling.next_ready("ann") == view


async def test_an_own_prompt_does_not_lose_the_open_comparison(bench: Bench) -> None:
    waiting = await bench.labeling.next_ready("ann")
    own = await bench.labeling.next_ready("ann", said("my own question"))
    assert bench.labeling.current("ann") == own
    bench.labeling.vote("ann", own.id, Choice.TIE)
    assert (await bench.labeling.next_ready("ann")).id == waiting.id


async def test_undo_opens_the_comparison_again_and_keeps_the_next_for_later(bench: Bench) -> None:
    first = await bench.labeling.next_ready("ann")
    bench.labeling.vote("ann", first.id, Choice.A)
    second = await bench.labeling.next_ready("ann")
    assert bench.labeling.undo("ann").id == first.id
    assert bench.labeling.current("ann") == first
    assert bench.labeling.progress("ann").total == 0
    bench.labeling.vote("ann", first.id, Choice.B)
    assert (await bench.labeling.next_ready("ann")).id == second.id


async def test_there_is_nothing_to_undo_at_first(bench: Bench) -> None:
    with pytest.raises(Conflict):
        bench.labeling.undo("ann")


async def test_nobody_undoes_the_vote_of_another(bench: Bench) -> None:
    view = await bench.labeling.next_ready("ann")
    receipt = bench.labeling.vote("ann", view.id, Choice.A)
    with pytest.raises(StudioError):
        bench.labeling.undo("bob", receipt.vote_id)
    assert bench.labeling.progress("ann").total == 1


async def test_sides_are_drawn_both_ways(bench: Bench) -> None:
    """Over 40 comparisons the first sample stands left in some and right in others: 2^-39 to fail."""
    swapped = set()
    for number in range(40):
        view = await bench.labeling.next_ready("ann", said(f"question {number}"))
        request = bench.engine.requests[-1]
        swapped.add(view.a == bench.engine._answers(request)[0])
    assert swapped == {True, False}


async def test_equal_samples_are_drawn_again_hotter(bench: Bench) -> None:
    bench.engine.is_repeating = 1
    view = await bench.labeling.next_ready("ann", said("hello"))
    temperatures = [request.sampling.temperature for request in bench.engine.requests]
    assert view.a != view.b
    assert temperatures == pytest.approx([0.9, 1.1])


@pytest.mark.parametrize("text", ["", "  \n", "\x00\x07"])
async def test_an_empty_prompt_is_refused(bench: Bench, text: str) -> None:
    with pytest.raises(BadInput, match="expected some text"):
        await bench.labeling.next_ready("ann", said(text))


async def test_control_characters_are_dropped_and_newlines_kept(bench: Bench) -> None:
    view = await bench.labeling.next_ready("ann", said("a\x00b\nc\x1b[31m"))
    assert view.messages == (Message("user", "ab\nc[31m"),)


async def test_an_overlong_prompt_is_refused_before_the_model(bench: Bench) -> None:
    with pytest.raises(BadInput, match="at most"):
        await bench.labeling.next_ready("ann", said("x" * 40_000))
    assert bench.engine.requests == []


async def test_a_loading_model_is_said_so(bench: Bench) -> None:
    bench.engine.state = "starting"
    with pytest.raises(EngineUnavailable):
        await bench.labeling.next_ready("ann", said("hello"))


async def test_the_factory_fills_up_and_stops(bench: Bench) -> None:
    await run_factory(bench, until_ready=2)
    assert bench.labeling.progress("ann").ready == 2
    assert {request.priority for request in bench.engine.requests} == {"background"}


async def test_a_waiting_comparison_is_handed_out_at_once(bench: Bench) -> None:
    await run_factory(bench, until_ready=2)
    bench.engine.state = "restarting"
    views: list[ComparisonView] = [view async for view in bench.labeling.stream_next("ann")]
    assert len(views) == 1 and views[0].ready


async def test_waiting_comparisons_of_a_superseded_version_are_dropped(bench: Bench) -> None:
    await run_factory(bench, until_ready=2)
    bench.factory.drop_superseded("v1")
    assert bench.labeling.progress("ann").ready == 0


async def test_a_shown_comparison_survives_a_swap(bench: Bench) -> None:
    view = await bench.labeling.next_ready("ann")
    bench.factory.drop_superseded("v1")
    assert bench.labeling.current("ann") == view
    assert bench.labeling.vote("ann", view.id, Choice.B).version_a == "base"
