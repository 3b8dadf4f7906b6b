"""How faults look on the wire: `{"error": {"code", "message"}}`, and nothing else.

StudioError speaks for itself; what a client got wrong becomes 4xx; anything else is our bug, answered with
a bare 500 and logged once. Never a traceback, never an exception's text, leaves through here.
"""

import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpo_studio.domain.chat import clean_text
from dpo_studio.errors import StudioError

logger = logging.getLogger(__name__)

_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 421: "misdirected"}
_OPENAI_PREFIX = "/v1/"
_SHOWN_CHARS = 500
"""Messages quote what was sent; quoting is cut here."""


class TooLarge(StudioError):
    """The body is longer than the route takes."""

    code = "too_large"
    status = 413


def error_body(path: str, status: int, code: str, message: str) -> dict[str, Any]:
    """The studio's error; below /v1 it carries OpenAI's `type` and `param` as well."""
    error: dict[str, Any] = {"code": code, "message": _shown(message)}
    if path.startswith(_OPENAI_PREFIX):
        error |= {"type": "server_error" if status >= 500 else "invalid_request_error", "param": None}
    return {"error": error}


def error_response(path: str, status: int, code: str, message: str) -> JSONResponse:
    """`error_body` with its status; OpenAI's clients expect 400 where the studio says 422."""
    if status == 422 and path.startswith(_OPENAI_PREFIX):
        status = 400
    body = error_body(path, status, code, message)
    return JSONResponse(body, status_code=status, headers=_retry_headers(status))


def install_error_handlers(app: FastAPI) -> None:
    """Answer StudioError, refused requests and unknown routes in the studio's form."""
    app.add_exception_handler(StudioError, _on_studio_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_exception)


class ErrorBoundary:
    """The outermost catch: an unexpected exception is logged once and answered with a bare 500.

    A response that has begun cannot be taken back; then the exception flies on, and the server cuts the
    connection so that the client sees a broken answer and not a complete one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        except ClientDisconnect:
            # Nobody is left to answer, and going away is no fault.
            return
        except Exception:
            if started:
                raise
            logger.exception("unexpected error in %s %s", scope["method"], ascii(scope["path"])[:200])
            sentence = "Something went wrong inside the studio; the log has the details"
            await error_response(scope["path"], 500, "internal", sentence)(scope, receive, send)


async def _on_studio_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, StudioError)
    return error_response(request.url.path, error.status, error.code, str(error))


async def _on_invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        sentence = f"body: expected JSON, found something else at character {first['loc'][-1]}"
        return error_response(request.url.path, 422, "bad_input", sentence)
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    message = str(first["msg"]).removeprefix("Value error, ")
    return error_response(request.url.path, 422, "bad_input", f"{place or first['loc'][0]}: {message}")


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "bad_request" if error.status_code < 500 else "internal")
    if error.status_code in (404, 405):
        message = f"{request.method} {request.url.path}: no such route; the API is described in the README"
    else:
        message = str(error.detail)
    return error_response(request.url.path, error.status_code, code, message)


def _retry_headers(status: int) -> dict[str, str]:
    return {"Retry-After": "1"} if status in (429, 503) else {}


def _shown(message: str) -> str:
    """Fit for JSON and a log line: lone surrogates and control characters gone, quotations cut."""
    cleaned = clean_text(message)
    return cleaned if len(cleaned) <= _SHOWN_CHARS else cleaned[:_SHOWN_CHARS] + "…"
