"""A server on this machine for shards that lie elsewhere; it drops, truncates, delays and garbles what it sends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from stand_ins.sample_groups import make_group

from mmrlhf.shards import remote
from mmrlhf.shards.writer import write_shards

FLOOD = 2**28
GROUPS = [make_group(f"key-{number}") for number in range(12)]


class Store(ThreadingHTTPServer):
    """Serves a folder; the first requests meet the faults in `faults`, one each."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.faults, self.asked = folder, list[str](), Counter[str]()
        self.bytes_sent = Counter[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        name = self.path.removeprefix("/set/")
        path = self.server.folder / name
        self.server.asked[name] += 1
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "drop":
            self.close_connection = True
            return
        if fault == "delay":
            time.sleep(0.05)
        if fault == "flood":
            self._flood(name)
            return
        if fault == "busy" or not path.is_file():
            self._send(503 if fault == "busy" else 404, b"no")
            return
        data, status, wanted = path.read_bytes(), 200, self.headers.get("Range")
        if fault == "garbled" and name.endswith((".tar", ".parquet")):
            data = bytes(byte ^ 1 for byte in data)
        if wanted and fault != "no ranges":
            first, last = wanted.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1], 206
        if fault == "short" and status == 206:
            data = data[: len(data) // 2 + 1]  # allowed: a server may answer a part of what was asked for
        self._send(status, data, cut=fault == "truncate")
        self.server.bytes_sent[name] += len(data)

    def _send(self, status: int, data: bytes, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut

    def _flood(self, name: str) -> None:
        """Far more than was asked for, as if it had no end."""
        self.send_response(206 if self.headers.get("Range") else 200)
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        with contextlib.suppress(OSError):
            for _ in range(FLOOD // 2**16):
                self.wfile.write(bytes(2**16))
                self.server.bytes_sent[name] += 2**16

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    folder = tmp_path_factory.mktemp("store")
    write_shards(GROUPS, folder, max_groups_per_shard=4)
    server = Store(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> Path:
    """A fresh cache, ranges smaller than a shard, no pauses, no faults."""
    monkeypatch.setenv(remote.FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_RANGE", 3000)
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.0)
    store.faults = []
    store.asked.clear()
    return tmp_path / "cache"
