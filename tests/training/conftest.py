"""A tiny model on disk, shared by the tests of the worker, and signals put back after it ran in-process."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.models import make_tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"), "starter")


@pytest.fixture
def signals() -> Iterator[None]:
    """The worker takes SIGTERM and SIGINT for the rest of its process, which here is pytest's."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
