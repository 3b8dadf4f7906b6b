"""WAL only where the WAL-reset bug is fixed."""

import pytest

from dpo_studio.store.journal import choose_journal


@pytest.mark.parametrize(
    "version", [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 45, 1), (3, 50, 4), (3, 50, 6), (3, 51, 1), (3, 51, 2)]
)
def test_an_affected_sqlite_never_gets_wal(version: tuple[int, int, int]) -> None:
    choice = choose_journal(version)
    assert choice.mode == "truncate"
    assert ".".join(map(str, version)) in choice.reason
    assert "3.51.3" in choice.reason


@pytest.mark.parametrize("version", [(3, 44, 6), (3, 44, 9), (3, 50, 7), (3, 51, 3), (3, 52, 0), (4, 0, 0)])
def test_a_fixed_sqlite_gets_wal(version: tuple[int, int, int]) -> None:
    assert choose_journal(version).mode == "wal"
