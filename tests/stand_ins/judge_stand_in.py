"""A judge that decides by rules: strict about the path and about what it is asked; it can be made to fail.

It reads our own judges' wording (`mmrlhf.suites.judged_forms`): an answer that is the reference's is good, any other is
bad; `prefers_first` gives the first answer of a pair the better mark whatever it says.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def verdict_of(text: str, *, prefers_first: bool = False) -> str:
    """What this judge says to one question; raises ValueError to one that it does not know."""

    def field(name: str) -> str:
        found = re.search(rf"^{name}: (.*)$", text, re.MULTILINE)
        if found is None:
            raise ValueError(f"no {name}")
        return found[1].strip()

    if "Rating: N" in text:
        return f"It says so. Rating: {6 if field('Answer to check') == field('Reference answer') else 0}"
    if "Ratings: N M" in text:
        zebra = [int("zebra" in field(f"Answer {n}")) for n in (1, 2)]
        marks = (9, 5) if prefers_first else tuple(8 - 6 * each for each in zebra)
        return f"Ratings: {marks[0]} {marks[1]}"
    if "A: it does it" in text:
        answer = field("Answer").lower()
        return f"Verdict: {'B' if 'help with that' in answer else 'A' if 'here is how' in answer else 'C'}"
    if "in these or other words" in text:
        wanted = re.search(r"other words: (.*)\?", text)
        return f"Verdict: {'A' if wanted and wanted[1] in field('Answer') else 'B'}"
    raise ValueError("an unknown question")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: JudgeServer = self.server  # type: ignore[assignment]
        server.seen.append(asked)
        if self.path != "/v1/chat/completions":
            return self._send(404, {"error": f"no {self.path}"})
        if asked["model"] != "judge":
            return self._send(404, {"error": "no such model"})
        if server.failing:
            return self._fail(server.failing.pop(0))
        content = asked["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        try:
            said = server.says(text) if server.says else verdict_of(text, prefers_first=server.prefers_first)
        except ValueError as error:
            return self._send(400, {"error": str(error)})
        return self._say(said)

    def _fail(self, how: str) -> None:
        if how == "hang":
            time.sleep(1.0)
            return self._say("Verdict: A")
        if how == "error":
            return self._send(500, {"error": "busy"})
        if how in ("length", "content_filter"):
            return self._say("Verdict: A", how)
        return self._say(how)  # prose

    def _say(self, text: str, reason: str = "stop") -> None:
        self._send(200, {"choices": [{"message": {"content": text}, "finish_reason": reason}]})

    def _send(self, code: int, content: Any) -> None:
        body = json.dumps(content).encode()
        try:
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:  # the client has gone
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


class JudgeServer(ThreadingHTTPServer):
    """`failing`: how the next answers fail, `hang`, `error`, the reason of an end, or words; `says` decides instead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[dict[str, Any]] = []
        self.failing: list[str] = []
        self.prefers_first = False
        self.says: Callable[[str], str] | None = None
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def judge_server() -> Iterator[JudgeServer]:
    """A judge for as long as the block lasts."""
    server = JudgeServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
