"""A fresh database for every test, copied from one that was migrated once."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpo_studio.store.database import Database
from tests.store.makers import opened


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty studio database. Never opened again, only copied."""
    path = tmp_path_factory.mktemp("template") / "studio.db"
    opened(path).close()
    return path


@pytest.fixture
def db(template: Path, tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "studio.db"
    shutil.copyfile(template, path)
    database = opened(path)
    yield database
    database.close()
