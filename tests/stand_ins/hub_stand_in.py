"""A hub in a thread: what huggingface_hub calls to list and download a repository, or to make one and commit to it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the stand-in serves and what it saw.

    `cuts` maps a file to how many of its next transfers break off half-way; `ranges` lists (file, Range header); `made`
    the repositories that were asked for and `messages` the commits, whose files are in `files` then. With `storage` not
    200, files go to the hub's storage, which answers so; with `garbled`, answers to a commit are no JSON.
    """

    files: dict[str, bytes]
    repo_id: str = "someone/some-data"
    repo_type: str = "dataset"
    status: int = 200
    storage: int = 200
    garbled: bool = False
    cuts: dict[str, int] = field(default_factory=dict)
    ranges: list[tuple[str, str | None]] = field(default_factory=list)
    made: list[dict] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    url: str = ""

    def listing(self) -> dict:
        siblings = [{"rfilename": n, "size": len(d), "blobId": _etag(d)} for n, d in self.files.items()]
        return {"id": self.repo_id, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}

    def tree(self) -> list[dict]:
        return [{"type": "file", "path": n, "size": len(d), "oid": _etag(d)} for n, d in self.files.items()]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free local port for as long as the block lasts."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.0"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        api = f"/api/{hub.repo_type}s/{hub.repo_id}"
        if hub.status != 200:
            self._json({"error": "refused by the stand-in"}, hub.status)
        elif path == "/api/repos/create":
            hub.made.append(json.loads(body))
            self._json({"url": f"{hub.url}/{hub.repo_id}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == f"{api}/preupload/main":
            asked, mode = json.loads(body)["files"], "regular" if hub.storage == 200 else "lfs"
            self._json({"files": [{"path": f["path"], "uploadMode": mode, "shouldIgnore": False} for f in asked]})
        elif path.endswith("/info/lfs/objects/batch"):
            action = {"upload": {"href": f"{hub.url}/storage"}}
            objects = [{**asked, "actions": action} for asked in json.loads(body)["objects"]]
            self._json({"transfer": "basic", "objects": objects})
        elif path == f"{api}/commit/main" and hub.garbled:
            self._bytes(b"<html>", "text/html")
        elif path == f"{api}/commit/main":
            self._commit([json.loads(line) for line in body.splitlines()])
        else:
            self._json({"error": f"not here: {path}"}, 404)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._json({"error": "refused by the storage"}, self.hub.storage)

    def _commit(self, lines: list[dict]) -> None:
        for line in lines:
            if line["key"] == "header":
                self.hub.messages.append(line["value"]["summary"])
            else:
                self.hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.hub.url}/{self.hub.repo_id}/commit/{COMMIT}"
        self._json({"success": True, "commitOid": COMMIT, "commitUrl": url})

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        api = f"/api/{hub.repo_type}s/{hub.repo_id}"
        if hub.status != 200:
            self._json({"error": "refused by the stand-in"}, hub.status)
        elif path.startswith(f"{api}/revision/"):
            self._json(hub.listing())
        elif path.startswith(f"{api}/tree/"):
            self._json(hub.tree())
        elif (match := re.search(r"/resolve/(?:[0-9a-f]{40}|main)/(.+)$", path)) and match[1] in hub.files:
            self._file(match[1], body)
        else:
            self._json({"error": "not here"}, 404, code="EntryNotFound" if "/resolve/" in path else "RepoNotFound")

    def _json(self, value: object, status: int = 200, *, code: str = "RepoNotFound") -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        if status in (401, 404):
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _bytes(self, data: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file(self, name: str, body: bool) -> None:
        data, start = self.hub.files[name], 0
        wanted = self.headers.get("Range")
        if body:
            self.hub.ranges.append((name, wanted))
        if wanted:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{_etag(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if not body:
            return
        rest = data[start:]
        if self.hub.cuts.get(name, 0) > 0:
            self.hub.cuts[name] -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
