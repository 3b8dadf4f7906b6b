"""A fake studio for handlers, and one served over HTTP for attacks."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dpo_studio.settings import load_settings
from tests.ui.fakes import World, fake_studio
from tests.ui.serving import Served, serve


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def studio(world: World, tmp_path: Path) -> Any:
    return fake_studio(world, load_settings(storage=tmp_path))


@pytest.fixture
def request_of_ann() -> Any:
    """What Gradio hands to a handler: the request of somebody whom the mount let in."""
    return SimpleNamespace(username="ann")


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The pages over fakes, in the real web application, on a port of their own."""
    with serve(World(word_s=0.001, step_s=0.01), tmp_path_factory.mktemp("storage")) as one:
        yield one
