"""Slots and reference counts of versions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_studio.errors import NotFound
from dpo_studio.serving.versions import VersionTable


def test_base_is_always_there_and_needs_no_slot() -> None:
    table = VersionTable(0)
    assert table.acquire("base") == -1
    table.release("base")
    assert table.loaded == ("base",)


def test_an_unknown_version_is_not_found_and_the_known_are_named() -> None:
    table = VersionTable(2)
    table.place("v1")
    with pytest.raises(NotFound, match="base, v1, found 'v2'"):
        table.acquire("v2")


def test_a_retired_version_refuses_new_requests_and_keeps_its_slot_for_old_ones() -> None:
    table = VersionTable(1)
    table.place("v1")
    table.acquire("v1")
    table.retire("v1")
    with pytest.raises(NotFound):
        table.acquire("v1")
    assert table.place("v2") is None
    table.release("v1")
    assert table.place("v2") == 0


def test_the_idle_version_used_longest_ago_makes_room() -> None:
    table = VersionTable(2)
    table.place("v1")
    table.place("v2")
    table.acquire("v1")
    table.release("v1")
    assert table.place("v3") == 1
    assert table.loaded == ("base", "v1", "v3")


def test_a_version_in_use_never_makes_room() -> None:
    table = VersionTable(1)
    table.place("v1")
    table.acquire("v1")
    assert table.place("v2") is None


def test_loading_again_keeps_a_version_that_was_about_to_leave() -> None:
    table = VersionTable(1)
    table.place("v1")
    table.acquire("v1")
    table.retire("v1")
    assert table.revive("v1")
    table.release("v1")
    assert table.loaded == ("base", "v1")


names = st.sampled_from(["v1", "v2", "v3", "v4"])


@given(st.lists(st.tuples(st.sampled_from(["place", "acquire", "release", "retire"]), names), max_size=60))
def test_two_versions_never_share_a_slot_and_a_pinned_slot_never_changes(
    actions: list[tuple[str, str]],
) -> None:
    table = VersionTable(2)
    pins: list[tuple[str, int]] = []
    for action, name in actions:
        if action == "place" and not table.revive(name):
            slot = table.place(name)
            assert slot is None or slot not in {pinned for _, pinned in pins}
        elif action == "acquire" and name in table.loaded:
            pins.append((name, table.acquire(name)))
        elif action == "release" and pins:
            table.release(pins.pop(0)[0])
        elif action == "retire":
            table.retire(name)
        assert len({slot for _, slot in pins}) == len({pinned for pinned, _ in pins})
