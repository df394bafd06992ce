"""Remote shards, from a server on this machine that drops, truncates, delays and garbles what it sends."""

from __future__ import annotations

import contextlib
import os
import pickle
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stand_ins.http_store import FLOOD, GROUPS, Store
from torch.utils.data import DataLoader, Dataset

from mmrlhf.errors import ConfigError, DataError, HubError
from mmrlhf.shards import remote
from mmrlhf.shards.index import Index

FAULTS = ["drop", "truncate", "delay", "busy", "no ranges", "short"]


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


@settings(max_examples=8)
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


@pytest.mark.timeout(60)
def test_what_has_no_end_is_not_read(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may send more than the manifest, the index or a range can have; it is asked again, or the run ends."""
    monkeypatch.setattr(remote, "LARGEST_FILE", 2**20)
    store.faults, before = ["flood", "", "flood"], store.bytes_sent.total()
    index = Index.load(store.url)
    store.faults = ["flood"]
    assert keys(index, 0) == ["key-0"]
    assert store.bytes_sent.total() - before < FLOOD / 2
    store.faults = ["flood"] * remote.ATTEMPTS
    with pytest.raises(HubError, match="sent more than"):
        index.read(11)


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


def kept_bytes(cache: Path) -> int:
    """What the cache takes on the disk: its files, and those that are gone but still open here."""
    named = {path.resolve() for path in cache.glob("shards/*") if path.suffix != ".lock"}
    found = sum(path.stat().st_size for path in named)
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if (target := os.readlink(link)).startswith(f"{cache}/shards/") and target.endswith("(deleted)"):
                found += link.stat().st_size
    return found


def test_the_cache_keeps_to_its_size_and_drops_what_was_used_longest_ago(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [shard.bytes for shard in Index.load(store.folder).shards]
    monkeypatch.setenv(remote.SIZE_VARIABLE, str((sizes[0] + sizes[1]) / 2**30))
    index = Index.load(store.url)
    assert keys(index, 0, 4, 0) == ["key-0", "key-4", "key-0"]  # shard 0 is used again, so shard 1 goes
    assert keys(index, 8) == ["key-8"]
    kept = {path.stem for path in cache.glob("shards/*.tar")}
    assert kept == {index.shards[0].sha256, index.shards[2].sha256}
    for row in (4, 8, 0, 4, 8):
        assert keys(index, row) == [f"key-{row}"]
        assert kept_bytes(cache) <= sizes[0] + sizes[1], "what is dropped is free"
    monkeypatch.setenv(remote.SIZE_VARIABLE, str(100 / 2**30))
    with pytest.raises(ConfigError, match="smaller than one shard"):
        Index.load(store.url).read(0)


@pytest.mark.parametrize("given", ["inf", "nan", "many", ""])
def test_a_size_that_is_none_is_refused(store: Store, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.SIZE_VARIABLE, given)
    with pytest.raises(ConfigError, match=remote.SIZE_VARIABLE):
        Index.load(store.url)


def test_a_cache_of_one_shard_serves_three_readers_of_three(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that is being fetched has its whole size claimed; the others wait for it."""
    most = max(shard.bytes for shard in Index.load(store.folder).shards)
    monkeypatch.setenv(remote.SIZE_VARIABLE, str(most / 2**30))
    monkeypatch.setattr(remote, "_ROOM_PAUSE", 0.001)
    found: dict[int, list[str]] = {}
    indices = [Index.load(store.url) for _ in range(3)]

    def read(number: int) -> None:
        found[number] = keys(indices[number], 4 * number, 4 * number + 1)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == {number: [f"key-{4 * number}", f"key-{4 * number + 1}"] for number in range(3)}
    assert kept_bytes(cache) <= most


def test_what_a_dead_download_left_makes_room(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = max(shard.bytes for shard in Index.load(store.folder).shards)
    monkeypatch.setenv(remote.SIZE_VARIABLE, str(most / 2**30))
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    index = Index.load(store.url)
    store.faults = ["", "busy"]
    with pytest.raises(HubError):
        index.read(0)
    assert list(cache.glob("shards/*.part"))
    assert keys(index, 4) == ["key-4"] and not list(cache.glob("shards/*.part"))


def test_worker_processes_read_remote_shards(store: Store, cache: Path) -> None:
    """Connections do not survive a fork, so each worker opens its own."""
    loader = DataLoader(Keys(Index.load(store.url)), batch_size=None, sampler=[0, 5, 9], num_workers=1)
    assert list(loader) == ["key-0", "key-5", "key-9"]


class Keys(Dataset):
    def __init__(self, index: Index) -> None:
        self.index = index

    def __getitem__(self, row: int) -> str:
        return self.index.read(row).key


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
