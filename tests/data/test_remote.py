"""Remote shards, from a server on this machine that drops, truncates, delays and garbles what it sends."""

from __future__ import annotations

import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sample_groups import make_group

from mmrlhf.data import remote
from mmrlhf.data.index import Index
from mmrlhf.data.shards import write_shards
from mmrlhf.errors import ConfigError, DataError, HubError

GROUPS = [make_group(f"key-{number}") for number in range(12)]
FAULTS = ["drop", "truncate", "delay", "busy", "no ranges", "short"]


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


def keys(index: Index, *rows: int) -> list[str]:
    return [index.read(row).key for row in rows]


def test_a_remote_set_reads_like_a_local_one(store: Store, cache: Path) -> None:
    index, local = Index.load(store.url), Index.load(store.folder)
    assert index.digest == local.digest and list(index.entries) == list(local.entries)
    assert not any(name.endswith(".tar") for name in store.asked), "shards come when they are read"
    assert [index.read(row) for row in range(12)] == [local.read(row) for row in range(12)]
    again = pickle.loads(pickle.dumps(index))
    fetched = store.bytes_sent.copy()
    assert keys(again, 0, 11) == ["key-0", "key-11"]
    assert store.bytes_sent == fetched, "what is there is not fetched again"
    again.verify()


@settings(max_examples=15)
@given(faults=st.lists(st.sampled_from(FAULTS), min_size=1, max_size=5))
def test_whatever_the_server_does_the_bytes_are_right(store: Store, tmp_path_factory, faults) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(remote.FOLDER_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        patch.setattr(remote, "_RANGE", 3000)
        patch.setattr(remote, "FIRST_PAUSE", 0.0)
        store.faults = []
        index = Index.load(store.url)
        store.faults = list(faults)
        assert keys(index, *range(12)) == [group.key for group in GROUPS]
        index.verify()
        names = [path.name for path in (tmp_path_factory.getbasetemp()).glob("cache*/shards/*.part")]
        assert not names


def test_a_download_goes_on_where_it_stopped(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranges arrive, then the server is gone; the next process asks for the rest only."""
    index = Index.load(store.url)
    shard = index.shards[0]
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    store.faults = ["", "", "drop", "drop", "drop", "drop"]
    with pytest.raises(HubError, match="what has arrived is kept"):
        index.read(0)
    part = next(cache.glob("shards/*.part"))
    assert part.stat().st_size == 6000 and not list(cache.glob("shards/*.tar"))
    store.faults, before = [], store.bytes_sent[shard.name]
    assert keys(Index.load(store.url), 0) == ["key-0"]
    assert store.bytes_sent[shard.name] - before == shard.bytes - 6000


def test_garbled_bytes_are_fetched_anew_and_then_refused(store: Store, cache: Path) -> None:
    index = Index.load(store.url)
    store.faults = ["garbled"]
    assert keys(index, 0) == ["key-0"]
    store.faults = ["garbled"] * 100
    with pytest.raises(DataError, match="other bytes") as error:
        index.read(5)
    assert "shard-00001.tar" in str(error.value)
    assert len(list(cache.glob("shards/*.tar"))) == 1 and not list(cache.glob("shards/*.part"))


def test_a_garbled_index_is_not_kept(store: Store, cache: Path) -> None:
    store.faults = ["", "garbled"]
    with pytest.raises(DataError, match=r"index is damaged(?s:.)*index.parquet"):
        Index.load(store.url)
    assert keys(Index.load(store.url), 3) == ["key-3"]


def test_the_cache_keeps_to_its_size_and_drops_what_was_used_longest_ago(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [shard.bytes for shard in Index.load(store.folder).shards]
    monkeypatch.setenv(remote.SIZE_VARIABLE, str((sizes[0] + sizes[1]) / 2**30))
    index = Index.load(store.url)
    assert keys(index, 0, 4) == ["key-0", "key-4"]
    assert keys(Index.load(store.url), 0) == ["key-0"]  # used again, so shard 1 goes
    assert keys(index, 8, 4) == ["key-8", "key-4"], "an open shard is read on after it was dropped"
    kept = {path.stem for path in cache.glob("shards/*.tar")}
    assert kept == {index.shards[0].sha256, index.shards[2].sha256}
    monkeypatch.setenv(remote.SIZE_VARIABLE, str(100 / 2**30))
    with pytest.raises(ConfigError, match="smaller than one shard"):
        Index.load(store.url).read(4)


def test_two_readers_fetch_a_shard_once(store: Store, cache: Path) -> None:
    indices = [Index.load(store.url) for _ in range(3)]
    sent = store.bytes_sent["shard-00000.tar"]
    readers = [threading.Thread(target=index.read, args=(1,)) for index in indices]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert store.bytes_sent["shard-00000.tar"] - sent == indices[0].shards[0].bytes


def test_places_that_cannot_be_read(store: Store, cache: Path) -> None:
    with pytest.raises(DataError, match="not found"):
        Index.load(f"{store.url}/nowhere")
    with pytest.raises(ConfigError, match="nothing reads this address"):
        Index.load("ftq://somewhere/shards")
