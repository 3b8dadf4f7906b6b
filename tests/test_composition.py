"""Wiring: one owner per storage folder, and every refusal before anything runs."""

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from dpo_studio import composition
from dpo_studio.composition import attended, build, owned_storage, report_loading, running
from dpo_studio.domain.round import TrainSettings
from dpo_studio.errors import SettingsError, StorageError
from dpo_studio.rounds.schedule import Ticker
from dpo_studio.services.pair_factory import PairFactory
from dpo_studio.services.rounds import RoundService
from dpo_studio.settings import load_settings
from dpo_studio.store import audit, rounds, versions
from dpo_studio.store.database import Database
from tests.fakes import FakeEngine


def test_a_storage_folder_has_one_owner(tmp_path: Path) -> None:
    settings = load_settings(storage=tmp_path)
    with (
        owned_storage(settings),
        pytest.raises(StorageError, match="in use by a running studio"),
        owned_storage(settings),
    ):
        pass
    with owned_storage(settings):
        pass


@pytest.mark.parametrize("make", [lambda p: p.write_text("a file"), lambda p: p.symlink_to("/proc/nowhere")])
def test_a_storage_that_cannot_be_a_folder_is_a_sentence(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    place = tmp_path / "place"
    make(place)
    with (
        pytest.raises(StorageError, match="choose another with --storage"),
        owned_storage(load_settings(storage=place)),
    ):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_storage_is_a_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(StorageError, match="can be written"),
        owned_storage(load_settings(storage=tmp_path / "x")),
    ):
        pass


def test_the_queue_is_seeded_once(tmp_path: Path) -> None:
    settings = load_settings(storage=tmp_path)
    first = build(settings)
    total = first.studio.rounds.status().new_pairs
    first.database.close()
    second = build(settings)
    assert second.studio.rounds.status().new_pairs == total == 0
    second.database.close()


def test_a_missing_chat_template_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="expected a readable file"):
        build(load_settings(storage=tmp_path, chat_template=tmp_path / "none.jinja"))


def test_a_damaged_live_version_is_not_served(tmp_path: Path) -> None:
    settings = load_settings(storage=tmp_path)
    runtime = build(settings)
    plant_live_version(runtime.database)
    runtime.database.close()
    again = build(settings)
    assert again.studio.deployment.live() == "base"
    with again.database.read() as session:
        (event,) = [e for e in audit.list_events(limit=9, session=session) if e.action == "rollback"]
    assert "v1" in event.details["reason"]
    again.database.close()


def plant_live_version(database: Database) -> None:
    """A live pointer to a version whose folder is not there."""
    now = datetime.now(UTC)
    with database.write() as session:
        number = rounds.create_round("test", TrainSettings(), now=now, session=session).number
        versions.add_version("v1", round_number=number, now=now, session=session)
        versions.set_live("v1", expected_serial=0, actor="test", now=now, session=session)


class RestingEngine:
    """Stands in for the supervisor where no model is needed."""

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass


@pytest.mark.parametrize(
    ("part", "step"),
    [(PairFactory, "_neediest"), (RoundService, "_next_queued"), (RoundService, "_is_round_due")],
    ids=["pair factory", "round watcher", "clock"],
)
async def test_a_background_loop_that_dies_of_a_bug_lives_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    part: type,
    step: str,
) -> None:
    """The factory and the watcher of rounds ended for good at their first unexpected exception."""
    monkeypatch.setattr(composition, "RESTART_S", 0.01)
    loop, is_back, deaths = asyncio.get_running_loop(), asyncio.Event(), list[str]()

    def fragile(_self: object, *_arguments: object) -> None:
        if not deaths:
            deaths.append(step)
            raise KeyError("a bug of ours")
        loop.call_soon_threadsafe(is_back.set)

    monkeypatch.setattr(part, step, fragile)
    built = build(load_settings(storage=tmp_path))
    ticker = Ticker(built.studio.rounds.tick, 0.05)
    runtime = replace(built, engine=cast(Any, RestingEngine()), ticker=ticker)
    async with running(runtime), attended(runtime):
        await asyncio.wait_for(is_back.wait(), 5)
    assert "a bug of ours" in caplog.text


async def test_loading_is_reported_a_line_per_change() -> None:
    engine, said = FakeEngine(), list[str]()
    await report_loading(engine, said.append)
    assert said == ["  engine   ready on cpu in float32, 3.0M parameters"]
