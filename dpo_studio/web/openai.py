"""OpenAI-compatible chat: `/v1/chat/completions` (whole or streamed) and `/v1/models`.

A model is a version's name, or `live`; the answer's `model` always names the version that wrote it. One
request is answered by one version even when a swap happens meanwhile.
"""

import json
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from dpo_studio.errors import NotFound, StudioError
from dpo_studio.services.studio import Studio
from dpo_studio.services.views import GenerationView
from dpo_studio.web.answers import Json
from dpo_studio.web.connection import while_connected
from dpo_studio.web.errors import error_body, error_response
from dpo_studio.web.openai_models import ChatCompletionBody

Views = AsyncGenerator[GenerationView, None]
OWNER = "dpo-studio"


def openai_router(studio: Studio, *, now: Callable[[], float]) -> APIRouter:
    """Routes below /v1. `now` gives seconds since the epoch."""
    router = APIRouter(prefix="/v1")
    routes = OpenAIRoutes(studio, now)
    router.add_api_route("/chat/completions", routes.complete, methods=["POST"], response_model=None)
    router.add_api_route("/models", routes.models, methods=["GET"], response_model=None)
    router.add_api_route("/models/{name}", routes.model, methods=["GET"], response_model=None)
    return router


class OpenAIRoutes:
    """The studio's versions behind OpenAI's names."""

    def __init__(self, studio: Studio, now: Callable[[], float]) -> None:
        self._studio = studio
        self._now = now

    async def complete(self, request: Request, body: ChatCompletionBody) -> Response:
        """Answer a conversation."""
        head = _Head(f"chatcmpl-{secrets.token_hex(12)}", int(self._now()))
        generation = self._studio.generation
        arguments: dict[str, Any] = {
            "version": body.model,
            "sampling": body.sampling(self._studio.settings),
            "n": body.n,
        }
        try:
            if not body.stream:
                work = generation.generate(body.conversation(), **arguments)
                return JSONResponse(head.completion(await while_connected(request, work)))
            views = generation.stream(body.conversation(), **arguments)
            begun = await while_connected(request, _begin(views))
        except NotFound as error:
            return error_response(request.url.path, 404, "model_not_found", str(error))
        events = _server_sent_events(head, begun, views, with_usage=body.stream_options.include_usage)
        return StreamingResponse(events, media_type="text/event-stream")

    def models(self) -> Json:
        """`live` and every version."""
        return {"object": "list", "data": self._models()}

    def model(self, request: Request, name: str) -> Response:
        """One of them."""
        for model in self._models():
            if model["id"] == name:
                return JSONResponse(model)
        message = f"model: expected live, base or a published version, found {name[:64]}"
        return error_response(request.url.path, 404, "model_not_found", message)

    def _models(self) -> list[Json]:
        created = {view.name: view.created_at for view in self._studio.deployment.versions()}
        created = {"live": created.get(self._studio.deployment.live()), **created}
        return [_model_json(name, at) for name, at in created.items()]


class _Head:
    """Identity shared by all chunks of one answer."""

    def __init__(self, identifier: str, created: int) -> None:
        self._identifier = identifier
        self._created = created

    def completion(self, view: GenerationView) -> Json:
        """The whole answer."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "finish_reason": _finish_reason(reason),
                "logprobs": None,
            }
            for index, (text, reason) in enumerate(zip(view.texts, view.finish_reasons, strict=True))
        ]
        return self._common("chat.completion", view) | {"choices": choices, "usage": _usage(view)}

    def chunk(self, view: GenerationView, index: int, delta: Json, reason: str | None = None) -> Json:
        """A piece of choice `index`."""
        choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
        return self._common("chat.completion.chunk", view) | {"choices": [choice]}

    def usage_chunk(self, view: GenerationView) -> Json:
        """The last chunk when usage was asked for."""
        return self._common("chat.completion.chunk", view) | {"choices": [], "usage": _usage(view)}

    def _common(self, kind: str, view: GenerationView) -> Json:
        return {"id": self._identifier, "object": kind, "created": self._created, "model": view.version}


async def _begin(views: Views) -> list[GenerationView]:
    """The first views, until the model has begun: what is refused is an error status and not a stream."""
    begun = []
    try:
        async for view in views:
            begun.append(view)
            if len(begun) == 2:
                break
    except BaseException:
        await views.aclose()
        raise
    return begun


async def _server_sent_events(
    head: _Head, begun: list[GenerationView], views: Views, *, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    sent = [""] * len(begun[0].texts)
    view = begun[0]
    async with aclosing(views):
        for index in range(len(sent)):
            yield _event(head.chunk(view, index, {"role": "assistant", "content": ""}))
        try:
            for view in begun:
                for chunk in _text_chunks(head, view, sent):
                    yield chunk
            async for view in views:
                for chunk in _text_chunks(head, view, sent):
                    yield chunk
        except StudioError as error:
            # The status line is gone already; OpenAI's clients raise on an error inside the stream.
            yield _event(error_body("/v1/", error.status, error.code, str(error)))
            return
    for index, reason in enumerate(view.finish_reasons):
        yield _event(head.chunk(view, index, {}, _finish_reason(reason)))
    if with_usage:
        yield _event(head.usage_chunk(view))
    yield b"data: [DONE]\n\n"


def _text_chunks(head: _Head, view: GenerationView, sent: list[str]) -> list[bytes]:
    """Events for what is new in `view`; brings `sent` up to date."""
    chunks = []
    for index, text in enumerate(view.texts):
        if len(text) > len(sent[index]):
            chunks.append(_event(head.chunk(view, index, {"content": text[len(sent[index]) :]})))
            sent[index] = text
    return chunks


def _event(value: Json) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n\n"


def _usage(view: GenerationView) -> Json:
    written = sum(view.num_tokens)
    return {
        "prompt_tokens": view.num_prompt_tokens,
        "completion_tokens": written,
        "total_tokens": view.num_prompt_tokens + written,
    }


def _finish_reason(reason: str) -> str:
    """OpenAI knows no "cancelled"; such an answer is as cut off as one at its cap."""
    return "stop" if reason == "stop" else "length"


def _model_json(name: str, created_at: datetime | None) -> Json:
    created = int(created_at.timestamp()) if created_at else 0
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}
