"""A command line run in this process, and a stand-in for the composition behind it."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dpo_studio.cli import main
from dpo_studio.errors import StorageError
from dpo_studio.services.studio import Studio
from dpo_studio.settings import Settings
from tests.fakes import FakeEngine
from tests.web.fakes import FakeStudio


@dataclass
class Outcome:
    """What a command printed and returned."""

    code: int
    out: str
    err: str


@dataclass
class CommandLine:
    """`run` is `dpo-studio …` with `--storage` added."""

    capture: pytest.CaptureFixture[str]
    storage: Path

    def run(self, *arguments: str) -> Outcome:
        return self.bare(*arguments, "--storage", str(self.storage))

    def bare(self, *arguments: str) -> Outcome:
        code = main(arguments)
        printed = self.capture.readouterr()
        return Outcome(code, printed.out, printed.err)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> CommandLine:
    return CommandLine(capsys, tmp_path / "storage")


@dataclass
class FakeComposition:
    """Replaces `dpo_studio.composition`: fakes instead of processes."""

    fake: FakeStudio
    served: list[Settings] = field(default_factory=list)
    built: list[Settings] = field(default_factory=list)
    is_in_use: bool = False
    num_running: int = 0
    serving_raises: BaseException | None = None

    def serve(self, settings: Settings) -> None:
        self.served.append(settings)
        if self.serving_raises is not None:
            raise self.serving_raises

    def build(self, settings: Settings) -> Studio:
        self.built.append(settings)
        return replace(self.fake.studio, settings=settings, engine=FakeEngine())

    @contextmanager
    def owned_storage(self, settings: Settings) -> Iterator[None]:
        if self.is_in_use:
            raise StorageError(f"storage: {settings.paths.root} is in use by a running studio; stop it")
        yield

    @asynccontextmanager
    async def running(self, studio: Studio) -> AsyncIterator[Studio]:
        self.num_running += 1
        try:
            yield studio
        finally:
            self.num_running -= 1


@pytest.fixture
def composition(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeComposition:
    fake = FakeComposition(FakeStudio(tmp_path))
    module: Any = ModuleType("dpo_studio.composition")
    for name in ("serve", "build", "owned_storage", "running"):
        setattr(module, name, getattr(fake, name))
    monkeypatch.setitem(sys.modules, "dpo_studio.composition", module)
    monkeypatch.setattr("dpo_studio.composition", module, raising=False)
    return fake
