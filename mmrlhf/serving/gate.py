"""The gate before the routes: token, size and time of a body; one line, one count and one form for every refusal."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mmrlhf.serving.limits import Limits
from mmrlhf.serving.measures import Measures
from mmrlhf.serving.refusals import Refusal, come_again

log = logging.getLogger(__name__)
_JSON = b"application/json"
_DRAINING = 2.0  # seconds


class Gate:
    """Lets requests through to the app whose token and body are as they should be.

    The whole body is here before the app sees the request, so neither a slow nor a large one costs more than its place.

    Args:
        app: what is behind the gate.
        limits: sizes and times.
        token: what `Authorization: Bearer` has to carry on paths that ask the model; "": nothing.
        guarded: those paths.
        known: all paths, for counting.
        measures: counts requests.
    """

    def __init__(
        self, app: ASGIApp, *, limits: Limits, token: str, guarded: frozenset[str], known: frozenset[str],
        measures: Measures,
    ) -> None:  # fmt: skip
        self._app, self._limits, self._token, self._measures = app, limits, token.encode(), measures
        self._guarded, self._known = guarded, known
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, path = time.monotonic(), scope["path"]
        shown = path if path in self._known else "other"
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        taken: list[int] = []
        try:
            if path in self._guarded and scope["method"] == "POST":
                headers = dict(scope["headers"])
                self._check(headers)
                body = await self._read(headers, receive, taken)
                await self._app(scope, _again(body, receive), sending)
            else:
                await self._app(scope, receive, sending)
        except Refusal as refusal:
            await self._refuse(answer_with(refusal, self._measures, connection="close"), receive, sending)
        finally:
            self._held -= sum(taken)
            self._measures.requests.labels(shown, str(status)).inc()
            self._measures.seconds.labels(shown).observe(time.monotonic() - started)

    async def _refuse(self, response: JSONResponse, receive: Receive, send: Send) -> None:
        """Answer, and take some more of a body that nobody wants: who still writes to a closed end reads no answer."""
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        left = self._limits.max_body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAINING):
                while left > 0:
                    message = await receive()
                    left -= len(message.get("body", b""))
                    if not message.get("more_body"):
                        break
        await send({"type": "http.response.body", "body": b""})

    def _check(self, headers: Mapping[bytes, bytes]) -> None:
        """Raise Refusal for a request without the token, or whose body is none of ours."""
        given = headers.get(b"authorization", b"")
        if self._token and not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Refusal(401, "unauthorized", "Authorization: Bearer TOKEN is missing or wrong",
                          headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != _JSON:
            # what a page in a browser may send anywhere without asking is text or a form, and so is refused
            raise Refusal(415, "not_json", "the body is not declared as application/json", field="Content-Type")

    async def _read(self, headers: Mapping[bytes, bytes], receive: Receive, taken: list[int]) -> bytes:
        """The whole body; what it takes of the memory for bodies is noted in `taken`."""
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._limits.max_body:
            raise self._too_large()
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "gone", "the client left")
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > self._limits.max_body:
                        raise self._too_large()
                    self._hold(len(chunk), taken)
                    chunks.append(chunk)
                    if not message.get("more_body"):
                        return b"".join(chunks)
        except TimeoutError:
            seconds = self._limits.body_timeout
            raise Refusal(408, "body_timeout", f"the body did not arrive within {seconds:g} s (limits.body_timeout)",
                          field="body") from None  # fmt: skip

    def _hold(self, size: int, taken: list[int]) -> None:
        if self._held + size > self._limits.max_held:
            raise come_again("the requests under way hold all memory for bodies (limits.max_held_mib)")
        self._held += size
        taken.append(size)

    def _too_large(self) -> Refusal:
        problem = f"larger than {self._limits.max_body_mib:g} MiB (limits.max_body_mib)"
        return Refusal(413, "body_too_large", problem, field="body")


def _again(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A `receive` that says the body once and then whatever comes."""
    first: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> Message:
        return first.pop() if first else await receive()

    return receiving


def answer_with(refusal: Refusal, measures: Measures, **headers: str) -> JSONResponse:
    """The answer that a refusal is, noted in the log and counted."""
    log.info("%d %s", refusal.status, refusal.sentence)
    measures.refusals.labels(refusal.code).inc()
    return JSONResponse(refusal.body(), refusal.status, {**refusal.headers, **headers})
