"""The annotation page's server: this machine only, nothing but its own page and the media of its own queries.

Bodies pass the gate of `mmrlhf.serving` (declared as JSON, limits of size and time). Requests under another host's name
are refused, so that no page of elsewhere reaches it through a name that it points here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mmrlhf.annotation.browser_media import TYPES
from mmrlhf.annotation.page_desk import SETTINGS, Desk
from mmrlhf.errors import DataError
from mmrlhf.serving.gate import Gate, answer_with
from mmrlhf.serving.limits import Limits
from mmrlhf.serving.listening import ending_calmly, listening
from mmrlhf.serving.measures import Measures
from mmrlhf.serving.refusals import Refusal, come_again, unusable
from mmrlhf.text import first_line

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
HOSTS = [HOST, "localhost"]
_PAGE = Path(__file__).parent / "page"
_FILES = {
    "/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")
}  # fmt: skip
# no file has a length of more digits
_RANGE = re.compile(r"\s*bytes\s*=([0-9]{0,18})-([0-9]{0,18})")
ASKING = frozenset({"/api/next", "/api/back", "/api/save", "/api/finish"})
_LIMITS = Limits(max_body_mib=1.0, max_held_mib=64.0, max_connections=256)
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}  # fmt: skip


class PageServer:
    """Serves a desk until it is told to finish, or a signal ends it.

    Attributes:
        finished: somebody said that everything is annotated.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk, self.finished = desk, False
        # clips are decoded in a child process of the thread that asks
        self._decoding = ThreadPoolExecutor(1, "media")
        self._measures = Measures()
        self.app = Gate(
            _routes(self, self._measures), limits=_LIMITS, token="", guarded=ASKING, known=ASKING | set(_FILES),
            measures=self._measures,
        )  # fmt: skip
        self.server = uvicorn.Server(
            uvicorn.Config(
                self.app, log_config=None, access_log=False, server_header=False, ws="none", log_level="warning",
                limit_concurrency=_LIMITS.max_connections, timeout_graceful_shutdown=5,
            )
        )  # fmt: skip

    def run(self, listener: socket.socket) -> None:
        """Serve until it is finished or a signal comes."""
        with ending_calmly():
            self.server.run(sockets=[listener])
        self._decoding.shutdown()

    def finish(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """End the server, where everything is annotated."""
        left = self.desk.left()
        if left:
            raise Refusal(409, "unfinished", f"{left} forms are still wanted")
        self.finished = self.server.should_exit = True
        return {}

    async def medium(self, request: Request) -> Response:
        """A picture or clip, or the part of it that is asked for."""
        token, number = request.path_params["token"], request.path_params["number"]
        work = asyncio.get_running_loop().run_in_executor(
            self._decoding, self.desk.medium, token, number, request.query_params.get("for", "")
        )
        try:
            shown = await work
        except DataError as error:
            raise unusable(error, "media") from error
        return _ranged(shown.data, TYPES[shown.suffix], request.headers.get("range", ""))


def serve_page(desk: Desk, port: int) -> bool:
    """Serve the page on this machine until it is finished (True) or a signal ends it (False).

    Raises:
        ConfigError: the port cannot be listened on.
    """
    server = PageServer(desk)
    with listening(HOST, port) as listener:
        log.info("annotate on http://%s:%d (%d forms to fill in); they are kept in %s",
                 HOST, listener.getsockname()[1], desk.left(), desk.store.path)  # fmt: skip
        server.run(listener)
    return server.finished


def _routes(server: PageServer, measures: Measures) -> Starlette:
    desk = server.desk
    asked = {"/api/next": desk.next, "/api/back": desk.back, "/api/save": desk.save, "/api/finish": server.finish}
    routes = [Route(path, _answering(function), methods=["POST"]) for path, function in asked.items()]
    routes += [Route(path, _file(*file)) for path, file in _FILES.items()]
    routes += [
        Route("/api/settings", lambda request: JSONResponse(SETTINGS)),
        Route("/media/{token}/{number:int}", server.medium),
    ]

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        return answer_with(error, measures)

    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS), Middleware(_WithHeaders)],
        exception_handlers={Refusal: refuse},
    )


def _answering(function: Callable[[Mapping[str, Any]], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
    """A route for a function of a JSON body."""

    async def answer(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise Refusal(400, "not_json", "the body is no JSON object", field="body")
        try:
            return JSONResponse(function(body))
        except sqlite3.Error as error:  # a full disk, for one: the page keeps what it has and tries again
            log.error("forms cannot be kept: %s", first_line(error))
            raise come_again(f"forms cannot be kept: {first_line(error)}", code="not_kept") from error

    return answer


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    content = (_PAGE / name).read_bytes()
    return lambda request: Response(content, media_type=kind)


def _ranged(data: bytes, kind: str, asked: str) -> Response:
    """All bytes, or one range of them (RFC 9110, section 14): browsers ask for parts of clips."""
    found = _RANGE.fullmatch(asked)
    first, last = found.groups() if found else ("", "")
    if not (first or last):
        return Response(data, media_type=kind, headers={"Accept-Ranges": "bytes"})
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last) + 1 if first and last else len(data), len(data))
    if start >= end:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(data)}"})
    headers = {"Accept-Ranges": "bytes", "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
    return Response(data[start:end], 206, headers, kind)


class _WithHeaders:
    """Adds the headers that keep a page to itself to every answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self._app(scope, receive, sending)
