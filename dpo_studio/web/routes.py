"""REST routes: thin translations between HTTP and the services.

A handler reads one strict body, calls the service, writes one view. Handlers without `async` run in a
thread, as the services behind them wait for the disk; the others wait for the model.
"""

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from dpo_studio.errors import StudioError
from dpo_studio.services.studio import Studio
from dpo_studio.web.answers import (
    Json,
    comparison_json,
    generation_json,
    status_json,
    version_json,
    vote_json,
)
from dpo_studio.web.connection import while_connected
from dpo_studio.web.errors import error_response
from dpo_studio.web.requests import ComparisonBody, EmptyBody, GenerateBody, Identifier, VoteBody
from dpo_studio.web.routes_data import DataRoutes
from dpo_studio.web.routes_rounds import RoundRoutes
from dpo_studio.web.visitors import Visitor


def api_router(studio: Studio) -> APIRouter:
    """All routes of the HTTP contract but the OpenAI-compatible ones."""
    router = APIRouter()
    health, labeling = HealthRoutes(studio), LabelingRoutes(studio)
    versions, rounds, data = VersionRoutes(studio), RoundRoutes(studio), DataRoutes(studio)
    table: tuple[tuple[str, str, Callable[..., Any], int], ...] = (
        ("GET", "/healthz", health.alive, 200),
        ("GET", "/readyz", health.ready, 200),
        ("GET", "/api/status", health.status, 200),
        ("POST", "/api/comparisons", labeling.compare, 200),
        ("POST", "/api/comparisons/{comparison_id}/vote", labeling.vote, 200),
        ("DELETE", "/api/votes/{vote_id}", labeling.undo, 200),
        ("GET", "/api/versions", versions.list, 200),
        ("POST", "/api/versions/{name}/promote", versions.promote, 200),
        ("POST", "/api/generate", versions.generate, 200),
        ("POST", "/api/rounds", rounds.start, 202),
        ("GET", "/api/rounds", rounds.list, 200),
        ("GET", "/api/rounds/{number}", rounds.get, 200),
        ("GET", "/api/rounds/{number}/steps", rounds.steps, 200),
        ("POST", "/api/rounds/{number}/cancel", rounds.cancel, 200),
        ("GET", "/api/training", rounds.training, 200),
        ("PUT", "/api/training", rounds.set_training, 200),
        ("POST", "/api/prompts", data.import_prompts, 200),
        ("POST", "/api/pairs", data.import_pairs, 200),
        ("GET", "/api/pairs", data.export_pairs, 200),
    )
    for method, path, handler, status in table:
        router.add_api_route(path, handler, methods=[method], status_code=status, response_model=None)
    return router


class HealthRoutes:
    """Whether the process lives, can work, and what it is doing."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    async def alive(self) -> Json:
        """The event loop answers; nothing else is claimed."""
        return {"status": "ok"}

    def ready(self, request: Request) -> Response:
        """200 when the database can be written and the model answers, else 503 with the reason."""
        try:
            trouble = self._studio.rounds.write_trouble()
            status = self._studio.rounds.status()
        except StudioError as error:
            trouble = str(error)
        if trouble:
            return error_response(request.url.path, 503, "not_ready", trouble)
        if status.engine.state != "ready":
            detail = status.engine.detail or f"The model is {status.engine.state}"
            return error_response(request.url.path, 503, "not_ready", detail)
        return JSONResponse({"status": "ready", "live": status.live})

    def status(self) -> Json:
        """Live version, new pairs, round, schedule, engine."""
        return status_json(self._studio.rounds.status())


class LabelingRoutes:
    """Comparisons out, votes in."""

    def __init__(self, studio: Studio) -> None:
        self._labeling = studio.labeling

    async def compare(self, request: Request, visitor: Visitor, body: ComparisonBody | None = None) -> Json:
        """A complete, blind comparison of the given prompt or of the queue's next one."""
        messages = body.conversation() if body else None
        work = self._labeling.next_ready(visitor, messages, source="api")
        return comparison_json(await while_connected(request, work))

    def vote(self, visitor: Visitor, comparison_id: Identifier, body: VoteBody) -> Json:
        """Durable when this answers; the same vote twice is one vote."""
        return vote_json(
            self._labeling.vote(
                visitor,
                comparison_id,
                body.judgement,
                strength=body.strength,
                reasons=tuple(body.reasons),
                note=body.note,
                edited=body.edited,
            )
        )

    def undo(self, visitor: Visitor, vote_id: Identifier) -> Json:
        """Withdraw a vote; its comparison is open again and comes back in the answer."""
        return comparison_json(self._labeling.undo(visitor, vote_id))


class VersionRoutes:
    """What can be served, what is live, and answers from any of it."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def list(self) -> Json:
        """Base first."""
        versions = self._studio.deployment.versions()
        return {"live": self._studio.deployment.live(), "versions": [version_json(view) for view in versions]}

    async def promote(self, visitor: Visitor, name: Identifier, body: EmptyBody | None = None) -> Json:
        """Make a version live; answers once new requests get it."""
        del body
        return {"live": await self._studio.deployment.promote(name, actor=visitor)}

    async def generate(self, request: Request, body: GenerateBody) -> Json:
        """One answer, complete."""
        messages = body.conversation()
        assert messages is not None
        sampling = body.sampling(self._studio.settings)
        work = self._studio.generation.generate(messages, version=body.version, sampling=sampling)
        return generation_json(await while_connected(request, work))
