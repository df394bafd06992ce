"""The judges of the harness's own tasks behind our judge: an address on this machine that speaks OpenAI's protocol.

Whatever spelling of the address a task uses, the model is ours, a verdict is asked once and counted; where there is
none the task's own code goes on with a number of its choice, so the document is remembered and gets no score.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from mmrlhf.endpoints.completions import Answer
from mmrlhf.errors import UserError
from mmrlhf.judging.judge_model import NO_VERDICT, Judge

LONGEST_REQUEST = 256 << 20
# whose requests come while the numbers of all documents are computed
ALL = "(all)"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        server: Gateway = self.server  # type: ignore[assignment]
        if self.path.startswith("/document/"):
            server.document = unquote(self.path.removeprefix("/document/"))
            return self._send(200, {"document": server.document})
        return self._send(404, {"error": f"no {self.path}"})

    def do_POST(self) -> None:  # noqa: N802
        server: Gateway = self.server  # type: ignore[assignment]
        length = int(self.headers.get("Content-Length") or 0)
        if not self.path.rstrip("/").endswith("/chat/completions") or not 0 < length <= LONGEST_REQUEST:
            return self._send(404, {"error": f"no {self.path}"})
        try:
            messages = json.loads(self.rfile.read(length))["messages"]
        except (ValueError, KeyError, TypeError):
            return self._send(400, {"error": "no messages"})
        answer = server.ask(messages)
        if answer.problem:
            return self._send(400, {"error": {"message": answer.problem}})
        content = {"role": "assistant", "content": answer.text}
        return self._send(200, {
            "id": "verdict", "object": "chat.completion", "created": 0, "model": server.judge.settings.model,
            "choices": [{"index": 0, "message": content, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        })  # fmt: skip

    def _send(self, code: int, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted, not printed."""


class Gateway(ThreadingHTTPServer):
    """Passes requests to the judge.

    Args:
        judge: asks, keeps, counts.
        patterns: task -> what a verdict has to hold.

    `document`: `task/name` that requests are for now; `missing`: documents without a verdict, with why.
    """

    daemon_threads = True

    def __init__(self, judge: Judge, patterns: Mapping[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.judge, self.patterns = judge, patterns
        self.document = ""
        self.missing: dict[str, str] = {}
        self._lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_port}"

    def ask(self, messages: Any) -> Answer:
        """The judge's answer, or a problem, which is remembered for the document."""
        with self._lock:  # one at a time, as the tasks themselves ask
            document = self.document
            if document in self.missing:  # the harness asks again and again
                return Answer("", self.missing[document])
            try:
                (answer,) = self.judge.ask({document: messages}).values()
            except UserError as error:
                answer = Answer("", f"{error.problem}: {error.given}")
            pattern = self.patterns.get(document.partition("/")[0], r"\S")
            if not answer.problem and not re.search(pattern, answer.text):
                self.judge.refuse(messages, NO_VERDICT)
                answer = Answer("", f"{NO_VERDICT} in {answer.text[-60:]!r}")
            if answer.problem:
                self.missing[document] = answer.problem
            return answer


@contextmanager
def gateway(judge: Judge, patterns: Mapping[str, str]) -> Iterator[Gateway]:
    """A gateway for as long as the block lasts."""
    server = Gateway(judge, patterns)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
