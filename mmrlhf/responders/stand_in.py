"""An endpoint on this machine that answers in the words of the embedded world, to try a chain without a service.

It sees nothing: it makes well-formed statements that the question asks for, drawn by a digest of the request. A real
server on a real port, so that everything but its answers is as with any other endpoint.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from mmrlhf.responders.asking import Answers, Asked
from mmrlhf.responders.endpoint import EndpointAnswerer
from mmrlhf.responders.spending import Purse
from mmrlhf.shapes.claims import LETTERS, RELATIONS
from mmrlhf.shapes.scene import CELLS, COLOURS, SHAPES

MODEL, ADDRESS = "stand-in", "http://127.0.0.1/v1"
_PICTURE_TOKENS = 64


def stand_in_answer(request: Mapping[str, Any]) -> str:
    """What it says to a request: the same to the same."""
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
    one, two = (f"{rng.choice(list(COLOURS))} {rng.choice(list(SHAPES))}" for _ in range(2))
    said = [f"there are {rng.integers(2, 5)} objects .", f"{rng.choice(list(CELLS))} is a {one} ."]
    said.append(f"the {one} is {rng.choice(list(RELATIONS))} the {two} .")
    if "what is" in _words(request):
        said.insert(0, f"the answer is {rng.choice(list(LETTERS))} .")
    return " ".join(said)


def _words(request: Mapping[str, Any]) -> str:
    content = request["messages"][-1]["content"]
    return content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)


def _completion(request: Mapping[str, Any]) -> dict[str, Any]:
    words = stand_in_answer(request).split()
    longest = int(request.get("max_tokens") or len(words))
    parts = [part for turn in request["messages"] if isinstance(turn["content"], list) for part in turn["content"]]
    read = len(_words(request).split()) + _PICTURE_TOKENS * sum(part["type"] == "image_url" for part in parts)
    choice = {
        "index": 0, "message": {"role": "assistant", "content": " ".join(words[:longest])},
        "finish_reason": "length" if len(words) > longest else "stop",
    }  # fmt: skip
    usage = {"prompt_tokens": read, "completion_tokens": min(longest, len(words))}
    return {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(_completion(request)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted, not printed."""


@contextmanager
def stand_in_server() -> Iterator[str]:
    """Its address, for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(frozen=True)
class StandInAnswerer(EndpointAnswerer):
    """The stand-in endpoint, which runs for as long as it is asked."""

    url: str = ADDRESS
    model: str = MODEL

    @property
    def kind(self) -> str:
        return "stand_in"

    def describe(self) -> Mapping[str, Any]:
        return {"url": ADDRESS, "model": self.model}

    def answers(self, asked: Asked, purse: Purse) -> Answers:
        if not asked.ranks.leads or self.url != ADDRESS:
            return super().answers(asked, purse)
        with stand_in_server() as url:
            return replace(self, url=url).answers(asked, purse)
