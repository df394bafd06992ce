"""A judge that reads no pictures and knows nothing: it stands in for an endpoint, to try the way without one.

    python examples/stand_in_judge.py 8765

It likes the longer answer, takes the first one where lengths are within a tenth, and in one request of twenty says
nothing that can be read. So its numbers are known: near those of the baseline `longer wins`, with more verdicts for
the first place than for the second.
"""

from __future__ import annotations

import json
import re
import sys
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# an answer ends where the next one begins, or what follows the last
ANSWER = re.compile(
    r"^Answer(?: (?:[A-Z]|\d+))?: (.*?)(?=\n\nAnswer (?:[A-Z]|\d+): |\n\nJudge how )", re.DOTALL | re.MULTILINE
)


def verdict(request: str) -> str:
    """The verdict in the form that the request asks for."""
    lengths = [len(answer) for answer in ANSWER.findall(request)]
    if not lengths or zlib.crc32(request.encode()) % 20 == 0:
        return "Both have their merits."
    best = max(range(len(lengths)), key=lambda place: lengths[place])
    if lengths[0] >= 0.9 * lengths[best]:
        best = 0
    if "`Rating: N`" in request:
        return f"Rating: {min(10, 1 + lengths[0] // 100)}"
    if "the number alone" in request:
        return f"{min(10, 1 + lengths[0] // 100)}"
    if "Overall Judgment" in request:
        return f"Overall Judgment: Answer {best + 1} is better."
    return f"[[{LETTERS[best]}]]" if "[[A]]" in request else f"Verdict: {LETTERS[best]}"


class Handler(BaseHTTPRequestHandler):
    """OpenAI's chat completions, as far as a judge needs them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:  # noqa: N802 - the name that http.server calls
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        said = verdict(content if isinstance(content, str) else content[-1]["text"])
        body = json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are counted by who asks."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
