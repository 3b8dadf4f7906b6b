"""Who runs when, decided without a tensor."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.domain.chat import GenerationRequest, Message, Priority, SamplingParams
from dpo_studio.errors import BadInput, Busy
from dpo_studio.serving.scheduler import Scheduler
from dpo_studio.serving.sequence import Group, Sample, sample_stream
from dpo_studio.serving.text_stream import TextStream


def group(name: str, n: int = 1, priority: Priority = "live") -> Group:
    request = GenerationRequest(name, (Message("user", "x"),), "base", SamplingParams(), n, priority)
    samples = [Sample(i, TextStream(lambda _: ""), sample_stream(0, i)) for i in range(n)]
    return Group(request, [1, 2, 3], 0, -1, 10, samples)


def admit(scheduler: Scheduler) -> str | None:
    """Take the next request through its prefill; its id, None when nothing may start."""
    found = scheduler.next_prefill()
    if found is None:
        return None
    scheduler.place(found)
    return found.request.request_id


def test_live_requests_overtake_background_ones() -> None:
    scheduler = Scheduler(4, 8, reserved_rows=1)
    scheduler.submit(group("b", priority="background"))
    scheduler.submit(group("l"))
    assert [admit(scheduler), admit(scheduler), admit(scheduler)] == ["l", "b", None]


def test_background_waits_while_a_live_request_waits_for_rows() -> None:
    scheduler = Scheduler(4, 8, reserved_rows=0)
    scheduler.submit(group("l1", n=3))
    assert admit(scheduler) == "l1"
    scheduler.submit(group("l2", n=2))
    scheduler.submit(group("b", priority="background"))
    assert admit(scheduler) is None


def test_background_leaves_the_reserved_rows_free() -> None:
    scheduler = Scheduler(4, 8, reserved_rows=2)
    for name in ("b1", "b2"):
        scheduler.submit(group(name, n=2, priority="background"))
    assert [admit(scheduler), admit(scheduler)] == ["b1", None]
    scheduler.submit(group("l", n=2))
    assert admit(scheduler) == "l"


def test_a_half_read_prompt_is_finished_before_another_begins() -> None:
    scheduler = Scheduler(4, 8, reserved_rows=0)
    scheduler.submit(group("b", priority="background"))
    first = scheduler.next_prefill()
    scheduler.submit(group("l"))
    assert scheduler.next_prefill() is first


def test_a_full_queue_is_busy() -> None:
    scheduler = Scheduler(1, 2, reserved_rows=0)
    scheduler.submit(group("a"))
    scheduler.submit(group("b"))
    with pytest.raises(Busy, match="ask again"):
        scheduler.submit(group("c"))


@pytest.mark.parametrize("n", [0, 5])
def test_more_samples_than_rows_are_refused(n: int) -> None:
    with pytest.raises(BadInput, match="expected 1 to 4"):
        Scheduler(4, 8, reserved_rows=0).submit(group("a", n=n))


def test_background_of_more_samples_than_it_may_ever_have_is_refused() -> None:
    with pytest.raises(BadInput):
        Scheduler(4, 8, reserved_rows=2).submit(group("a", n=3, priority="background"))


def test_a_forgotten_request_never_starts() -> None:
    scheduler = Scheduler(4, 8, reserved_rows=0)
    waiting, reading = group("w"), group("r")
    scheduler.submit(reading)
    scheduler.next_prefill()
    scheduler.submit(waiting)
    scheduler.forget(reading)
    scheduler.forget(waiting)
    assert scheduler.is_idle


@given(st.lists(st.integers(0, 10), max_size=30), st.lists(st.integers(1, 3), min_size=1, max_size=8))
def test_rows_stay_dense_and_moves_follow_the_samples(removals: list[int], sizes: list[int]) -> None:
    scheduler = Scheduler(30, 30, reserved_rows=0)
    for i, n in enumerate(sizes):
        scheduler.submit(group(str(i), n=n))
        admit(scheduler)
    cache = {row.sample: row.sample for row in scheduler.rows}
    rows = [row.sample for row in scheduler.rows]
    for removal in removals:
        if not rows:
            break
        move = scheduler.remove(rows[removal % len(rows)])
        if move is not None:
            rows[move[1]] = rows[move[0]]
        rows.pop()
        assert [row.sample for row in scheduler.rows] == rows
        assert [sample.row for sample in rows] == list(range(len(rows)))
    assert len(cache) >= len(rows)
