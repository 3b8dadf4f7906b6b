"""Puts the pages into the web application: Label at `/`, then `/chat`, `/compare`, `/rounds`.

Gradio is imported by `mount` alone, because it reads its environment when imported and must be told first to
stay off the network. What always holds: no `gr.State` (every tab would keep a connection for life), no
file can be named by a client (see `_harden`), and queued functions answer through the queue alone.
"""

import asyncio
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request

from dpo_studio.services.studio import Studio
from dpo_studio.ui.identity import LOCAL

AuthDependency = Callable[[Request], str | None]
MAX_RUNNING_EVENTS = 128
"""Gradio's own cap of 40 per app makes a vote wait behind forty streams."""
KEPT_SESSIONS = 300
LARGEST_UPLOAD_BYTES = 1
"""No page takes files."""


def mount(app: FastAPI, studio: Studio, *, auth_dependency: AuthDependency | None = None) -> None:
    """Add the pages at "/". Routes added to `app` afterwards are never reached, so this comes last.

    `auth_dependency` names the caller of a request, or None to refuse it; it runs on every request.
    """
    prepare_environment(studio.settings.paths.cache)

    async def build() -> None:
        _build_and_mount(app, studio, auth_dependency or _local_visitor)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        # Gradio makes its locks inside a loop; without one it creates one and never closes it.
        asyncio.run(build())
    else:
        _build_and_mount(app, studio, auth_dependency or _local_visitor)


def prepare_environment(cache: Path) -> None:
    """Tell Gradio, before its import, to call nobody and where to keep its temporary files."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        # Otherwise every event ends with statistics over all past events.
        GRADIO_ANALYTICS_CACHE_FREQUENCY="1000000000",
        GRADIO_TEMP_DIR=str(cache),
    )


def _build_and_mount(app: FastAPI, studio: Studio, auth_dependency: AuthDependency) -> None:
    import gradio as gr

    from dpo_studio.ui import shell

    pages = shell.build(studio)
    _tune(pages)
    with warnings.catch_warnings():
        # Said even with ssr_mode=False.
        warnings.filterwarnings("ignore", message="SSR mode is not supported", category=UserWarning)
        gr.mount_gradio_app(
            app,
            pages,
            "/",
            auth_dependency=auth_dependency,
            ssr_mode=False,
            run_history=False,
            show_error=False,
            footer_links=[],
            max_file_size=LARGEST_UPLOAD_BYTES,
            enable_monitoring=False,
            theme=shell.theme(),
            head=shell.head(),
        )
    _harden(pages)


def _local_visitor(_request: Request) -> str:
    return LOCAL


def _tune(pages: Any) -> None:
    pages.max_threads = MAX_RUNNING_EVENTS
    pages.state_session_capacity = KEPT_SESSIONS
    pages.queue(default_concurrency_limit=None, max_size=256, api_open=False)
    # The queue looks for work every millisecond by default: 4 % of a core at rest.
    pages._queue.sleep_when_free = 0.02
    pages._queue.progress_update_sleep_when_free = 0.2


def _harden(pages: Any) -> None:
    # Only `launch()` sets this. Without it, a client that sends a file's path as the value of any input
    # makes the server copy that file into its cache and hand it out.
    pages.has_launched = True
