"""A web application over fake services, and a client that speaks to it in-process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.responses import HTMLResponse

from dpo_studio.web.app import create_app
from tests.web.fakes import FakeStudio

BASE_URL = "http://127.0.0.1:7860"


@asynccontextmanager
async def no_lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Nothing to start."""
    del app
    yield


def mount_page(app: FastAPI) -> None:
    """Stands for Gradio: answers every path that no route of ours took."""

    async def page() -> HTMLResponse:
        return HTMLResponse("<p>page</p>")

    app.add_api_route("/{path:path}", page, methods=["GET"])


@pytest.fixture
def fake(tmp_path: Path) -> FakeStudio:
    """The fakes behind `client`."""
    return FakeStudio(tmp_path)


@pytest.fixture
def app(fake: FakeStudio) -> FastAPI:
    """The whole application, gate included."""
    return create_app(fake.studio, mounts=mount_page, lifespan=no_lifespan)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """An in-process client of `app`; an exception that reaches it fails the test."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE_URL) as client:
        yield client
