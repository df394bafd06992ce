"""Shards on a server of this machine, and an empty cache for them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_store import GROUPS, Store

from mmrlhf.data import remote
from mmrlhf.data.shards import write_shards


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
