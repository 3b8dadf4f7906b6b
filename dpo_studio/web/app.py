"""The web application: our routes first, the pages last, the gate around everything.

The order matters: whatever is registered after a mount at `/` is never reached. No OpenAPI document is
served; the README describes the API.
"""

import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from dpo_studio.services.studio import Studio
from dpo_studio.web.errors import ErrorBoundary, install_error_handlers
from dpo_studio.web.gate import Gate
from dpo_studio.web.openai import openai_router
from dpo_studio.web.routes import api_router

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(studio: Studio, *, mounts: Callable[[FastAPI], None], lifespan: Lifespan) -> FastAPI:
    """Build the application. `mounts` adds the pages; `lifespan` starts and stops engine and schedule."""
    app = FastAPI(
        title="DPO Studio",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        middleware=[Middleware(Gate, hosts=(studio.settings.host,)), Middleware(ErrorBoundary)],
    )
    install_error_handlers(app)
    app.include_router(api_router(studio))
    app.include_router(openai_router(studio, now=time.time))
    for prefix in ("/api", "/v1"):
        app.add_api_route(f"{prefix}/{{path:path}}", _no_such_route, methods=list(METHODS))
    mounts(app)
    return app


async def _no_such_route() -> None:
    """Without it the pages mounted at `/` would answer for a mistyped API path, in their own form."""
    raise HTTPException(404)
