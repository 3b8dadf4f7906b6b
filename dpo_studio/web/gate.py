"""The outer gate: what every request passes before any page or route sees it.

Pure ASGI, so that streams flow through untouched. It refuses foreign Host names (DNS rebinding), requests
that another origin's page makes (cross-site request forgery), and bodies over the limit whether or not
they declare their length; it adds the security headers to every answer, Gradio's and the 404 included.
It knows no people and no roles.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpo_studio.web.errors import error_response

MEGABYTE = 1024 * 1024
BODY_LIMIT = MEGABYTE
IMPORT_LIMIT = 64 * MEGABYTE
IMPORT_PATHS = ("/api/prompts", "/api/pairs", "/gradio_api/upload")

# Gradio routes that tell strangers about the app or do things for it that the studio never uses.
CLOSED_PATHS = ("/openapi.json", "/gradio_api/openapi.json", "/docs", "/redoc", "/docs/oauth2-redirect")
CLOSED_PREFIXES = (
    "/proxy=",
    "/gradio_api/proxy=",
    "/monitoring",
    "/gradio_api/monitoring",
    "/gradio_api/deep_link",
    "/gradio_api/run-history",
    "/gradio_api/vibe-",
    "/gradio_api/dev/",
)

# `unsafe-eval` is for gr.HTML and `unsafe-inline` for Gradio's own boot script; what the rest forbids is
# every fetch to elsewhere, so that an image in a model's answer cannot carry a prompt away.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer: browsers then send `Origin: null` with our own forms, which the gate refuses.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


class Gate:
    """ASGI middleware; put it outside everything else."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        """`hosts`: names besides the loopback ones that a Host header may carry, without port."""
        self._app = app
        self._hosts = frozenset(name.lower().strip("[]") for name in (*_LOOPBACK_NAMES, *hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await _refuse(scope, receive, _with_headers(scope, send), *refusal)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await _limited(self._app, scope, receive, _with_headers(scope, send))

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1:
            return 400, "bad_request", f"Host: expected exactly one header, found {len(hosts)}"
        if _host_name(hosts[0]) not in self._hosts:
            return 421, "misdirected", "Host: expected the address that the studio printed at its start"
        if _is_foreign(scope, headers, hosts[0]):
            return 403, "forbidden", "Origin: expected the studio's own pages, found another site's"
        path = scope["path"]
        if path in CLOSED_PATHS or path.startswith(CLOSED_PREFIXES):
            return 404, "not_found", f"{path}: this route is closed"
        length = headers.get("content-length", "0")
        # "²" is a digit to isdigit() and none to int(), hence the check for ASCII.
        if not (length.isascii() and length.isdigit()):
            return 400, "bad_request", "Content-Length: expected a number"
        if len(length) > 18 or int(length) > body_limit(path):
            return _too_large(path)
        return None


def body_limit(path: str) -> int:
    """Most bytes that a request to `path` may carry."""
    return IMPORT_LIMIT if path in IMPORT_PATHS else BODY_LIMIT


async def _limited(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run `app`, but answer 413 instead of whatever it says once the body passes the limit."""
    limit = body_limit(scope["path"])
    received = 0
    started = False

    async def counted_receive() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            # The frameworks inside let an HTTPException through; other types some would log as a bug.
            raise HTTPException(413)
        return message

    async def watched_send(message: Message) -> None:
        nonlocal started
        if received <= limit or started:
            started = True
            await send(message)

    try:
        await app(scope, counted_receive, watched_send)
    except HTTPException:
        if received <= limit or started:
            raise
    if received > limit and not started:
        await _refuse(scope, receive, send, *_too_large(scope["path"]))


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, code: str, message: str) -> None:
    if scope["type"] == "websocket":
        # A close before the accept is a 403 on the wire.
        await send({"type": "websocket.close", "code": 1008})
        return
    response = error_response(scope["path"], status, code, message)
    await response(scope, receive, send)


def _with_headers(scope: Scope, send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(SECURITY_HEADERS)
            if message["status"] == 200 and "/assets/" in scope["path"]:
                # Gradio's asset names carry a hash of their content.
                headers["Cache-Control"] = "public, max-age=31536000, immutable"
            elif headers.get("content-type", "").startswith(("text/html", "application/json")):
                headers["Cache-Control"] = "no-store"
        await send(message)

    return send_with_headers


def _is_foreign(scope: Scope, headers: Headers, host: str) -> bool:
    """Whether a page of another origin asks. Programs send neither header and are not judged by it."""
    if scope["type"] == "http" and scope["method"] in _SAFE_METHODS:
        return False
    origins = headers.getlist("origin")
    if origins:
        return any(urlsplit(origin).netloc.lower() != host.lower() for origin in map(_parsable, origins))
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _parsable(origin: str) -> str:
    """`origin`, or "null" when urlsplit would raise on it."""
    try:
        urlsplit(origin)
    except ValueError:
        return "null"
    return origin


def _host_name(host: str) -> str:
    """Name part of a Host header in lower case; empty when malformed, which no allowed name is."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises on a port that is no number
    except ValueError:
        return ""
    is_plain = parts.netloc == host and "@" not in host
    return (parts.hostname or "").lower() if is_plain else ""


def _too_large(path: str) -> tuple[int, str, str]:
    megabytes = body_limit(path) // MEGABYTE
    return 413, "too_large", f"body: expected at most {megabytes} MB; send less at once"
