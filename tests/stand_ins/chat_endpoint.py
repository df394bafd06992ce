"""A server on this machine that speaks OpenAI's chat protocol, and the faults that real ones have."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def said(content: Any, reason: str | None = "stop", **more: Any) -> bytes:
    """A body that answers with `content`; `more` stands beside the choices, such as `model` and `usage`."""
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": reason}], **more}).encode()


def words_of(asked: dict[str, Any]) -> str:
    """The texts of a request's last turn."""
    content = asked["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content if part["type"] == "text")


def counted(asked: dict[str, Any], text: str) -> dict[str, Any]:
    """What a service says about an answer beside it: a word is a token, a picture 100."""
    parts = [
        part for turn in asked["messages"] for part in (turn["content"] if isinstance(turn["content"], list) else ())
    ]
    read = sum(100 for part in parts if part["type"] == "image_url") + len(words_of(asked).split())
    return {"model": f"{asked['model']}-2026", "usage": {"prompt_tokens": read, "completion_tokens": len(text.split())}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: ChatServer = self.server  # type: ignore[assignment]
        server.seen.append((self.path, self.headers.get("Authorization"), asked))
        prompt = words_of(asked)
        fault = server.always.get(prompt) or (server.faults.pop(0) if server.faults else None)
        text = server.says(asked)
        getattr(self, f"_{fault[0]}")(*fault[1:]) if fault else self._send(200, said(text, **counted(asked, text)))

    def _send(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        own = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(body))} | own).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _body(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._send(200, body, **(headers or {}))

    def _status(self, code: int, headers: dict[str, str] | None = None) -> None:
        self._send(code, b'{"error": "busy"}', **(headers or {}))

    def _cut(self) -> None:
        self._send(200, said("half")[:10], Content_Length="9999")
        self.close_connection = True

    def _bad_status_line(self) -> None:
        self.wfile.write(b"HTTP/9 what\r\n\r\n")
        self.close_connection = True

    def _drip(self) -> None:
        self._send(200, b"", Content_Length="100000")
        for _ in range(100):
            if self.server.closing.wait(0.05):  # type: ignore[attr-defined]
                break
            try:
                self.wfile.write(b" ")
            except OSError:
                break
        self.close_connection = True

    def _flood(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        with_space = b" " * 65536
        try:
            for _ in range(3 * 2**30 // len(with_space)):
                self.wfile.write(with_space)
        except OSError:
            pass
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""


class ChatServer(ThreadingHTTPServer):
    """Says each prompt back; `says` makes it say something else.

    `faults` come first, one for each request: ("status", code, headers), ("body", bytes), ("cut",), ...; `always` maps
    a prompt to its fault, whenever it is asked.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[tuple[str, str | None, dict[str, Any]]] = []
        self.faults: list[tuple] = []
        self.always: dict[str, tuple] = {}
        self.says: Callable[[dict[str, Any]], str] = lambda asked: f" {words_of(asked)} "
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up are part of the tests."""


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    """A server for as long as the block lasts."""
    server = ChatServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
        time.sleep(0)
