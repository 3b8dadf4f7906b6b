"""`python -m tests.ui.demo --port 7999`: the pages over the fake studio, in the real web application."""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import uvicorn
from fastapi import FastAPI

from dpo_studio.settings import load_settings
from dpo_studio.ui.app import mount
from dpo_studio.web.app import create_app
from tests.ui.fakes import World, fake_studio


def build_app(world: World, storage: Path) -> FastAPI:
    """The whole web application, gate and API included, over fakes."""
    studio = fake_studio(world, load_settings(storage=storage))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield

    return create_app(studio, mounts=lambda app: mount(app, studio), lifespan=lifespan)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=7999)
    port = parser.parse_args().port
    with TemporaryDirectory() as storage:
        app = build_app(World(word_s=0.04, step_s=0.4), Path(storage))
        uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
