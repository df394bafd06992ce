"""Remote shards ahead of use: the plan's order, never more than the cache holds, and nothing but time changes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_ins.fake_groups import FakeEncoder
from stand_ins.http_store import GROUPS, Store

from mmrlhf.errors import HubError
from mmrlhf.feed.dataset import GroupDataset
from mmrlhf.feed.module import PreferenceDataModule
from mmrlhf.feed.plan import plan_step
from mmrlhf.feed.prefetch import ShardPrefetch, ShardUse, batch_uses, shard_uses
from mmrlhf.feed.steps import RunPlan
from mmrlhf.feed.weights import Mixing
from mmrlhf.inference.passes import encoded_batches
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.shards import remote
from mmrlhf.shards.index import Index
from mmrlhf.tensors import EncodedGroup
from mmrlhf.types import PreferenceGroup


@given(
    shards=st.lists(st.integers(0, 4), min_size=1, max_size=20), per_step=st.integers(1, 6), window=st.integers(1, 3),
    start=st.integers(0, 30), length=st.integers(1, 30),
)  # fmt: skip
def test_uses_are_what_the_steps_read(shards, per_step, window, start, length) -> None:
    rows, numbers = np.arange(len(shards)), np.sort(shards)
    plan = RunPlan(rows, "d", 0, per_step, numbers, window)
    names = [f"s{number}" for number in range(5)]
    expected: dict[tuple[int, str], list[int]] = {}
    for step in range(start, start + length):
        epoch, of_epoch = divmod(step, plan.steps_per_epoch)
        planned = plan_step(plan.order(epoch), epoch=epoch, step=of_epoch, groups_per_step=per_step)
        for row in planned.indices:
            expected.setdefault((epoch, names[numbers[row]]), []).append(step)
    found = list(shard_uses(plan, numbers, names, start=start, end=start + length))
    assert found == [ShardUse(shard, steps[0], steps[-1]) for (_, shard), steps in expected.items()]


@given(batches=st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=4), max_size=8))
def test_uses_of_a_pass_are_what_its_batches_read(batches) -> None:
    expected: dict[str, list[int]] = {}
    for number, batch in enumerate(batches):
        for row in batch:
            expected.setdefault(f"s{row // 5}", []).append(number)
    found = batch_uses(batches, np.arange(20) // 5, [f"s{number}" for number in range(4)])
    assert list(found) == [ShardUse(shard, steps[0], steps[-1]) for shard, steps in expected.items()]


def test_it_fetches_as_far_ahead_as_the_cache_holds_and_never_what_is_late() -> None:
    """The cache holds two shards; c and d have to wait for a's end in step 1, and then only c fits."""
    fetched: queue.Queue[str] = queue.Queue()
    asked: queue.Queue[str] = queue.Queue()

    def uses() -> Iterator[ShardUse]:
        for use in (ShardUse("a", 0, 1), ShardUse("b", 0, 9), ShardUse("c", 2, 5), ShardUse("d", 3, 9)):
            asked.put(use.shard)
            yield use

    ahead = ShardPrefetch(uses(), fetch=fetched.put, sizes=dict.fromkeys("abcd", 10), capacity=20)
    assert [asked.get(timeout=20) for _ in "abc"] == ["a", "b", "c"] and fetched.qsize() == 2
    ahead.advance(0)
    assert fetched.qsize() == 2
    ahead.advance(1)
    assert [fetched.get(timeout=20) for _ in "abc"] == ["a", "b", "c"]
    ahead.advance(3)
    ahead.thread.join(timeout=20)
    assert not ahead.thread.is_alive() and fetched.empty(), "step 3 has read d itself"


def test_it_ends_when_told_and_a_failed_fetch_is_left_to_the_read() -> None:
    tried: queue.Queue[str] = queue.Queue()

    def fail(shard: str) -> None:
        tried.put(shard)
        raise HubError("gone")

    uses = [ShardUse("a", 0, 9), ShardUse("b", 0, 9), ShardUse("c", 1, 9)]
    ahead = ShardPrefetch(uses, fetch=fail, sizes=dict.fromkeys("abc", 10), capacity=20)
    assert [tried.get(timeout=20) for _ in "ab"] == ["a", "b"]
    ahead.stop()
    ahead.thread.join(timeout=20)
    assert not ahead.thread.is_alive() and tried.empty()


class Encoder(FakeEncoder):
    """Encodes `key-N` like `gN`; every group costs the same."""

    def estimate_tokens(self, entry: Any) -> int:
        return 4

    def __call__(self, group: PreferenceGroup) -> EncodedGroup:
        number = group.key.removeprefix("key-")
        return replace(super().__call__(replace(group, key=f"g{number}", responses=group.responses[:2])), key=group.key)


def make_data(folder: Path | str, **options: Any) -> PreferenceDataModule:
    dataset = GroupDataset(Index.load(folder), Encoder())  # type: ignore[arg-type]
    settings = {"epochs": 2, "groups_per_step": 4, "token_budget": 100, "seed": 3, "mixing": Mixing(shuffle_window=1)}
    return PreferenceDataModule(dataset, train_indices=range(len(GROUPS)), **settings | options)


def seen(steps: Any) -> list[tuple[str, ...]]:
    return [batch.keys for step in steps for batch in step.micro_batches]


def prefetching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shard prefetch"]


def join_prefetch() -> None:
    for thread in prefetching():
        thread.join(timeout=20)
        assert not thread.is_alive()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shards_are_there_before_their_steps_and_the_steps_are_the_same(
    store: Store, cache: Path, num_workers: int
) -> None:
    steps = iter(make_data(store.url, num_workers=num_workers).train_dataloader())
    found = [next(steps)]
    join_prefetch()
    assert len(list(cache.glob("shards/*.tar"))) == 3, "all have come while the first step was trained"
    store.faults = ["busy"] * 1000
    found += list(steps)
    assert seen(found) == seen(make_data(store.folder).train_dataloader())
    assert not prefetching()


def test_a_pass_has_its_shards_ahead_too(store: Store, cache: Path) -> None:
    encoder: Any = Encoder()
    rows = range(len(GROUPS))
    batches = encoded_batches(
        Index.load(store.url), rows, encoder, encoder, groups_per_batch=3, quarantine=Quarantine(len(rows))
    )
    found = [next(batches)]
    join_prefetch()
    store.faults = ["busy"] * 1000
    found += list(batches)
    local = encoded_batches(
        Index.load(store.folder), rows, encoder, encoder, groups_per_batch=3, quarantine=Quarantine(len(rows))
    )
    assert [[group for group, _ in batch] for batch in found] == [[group for group, _ in batch] for batch in local]
    assert not prefetching()


def test_a_small_cache_is_kept_to(store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards fit: the one in use and the next."""
    sizes = [shard.bytes for shard in Index.load(store.folder).shards]
    monkeypatch.setenv(remote.SIZE_VARIABLE, str(2 * max(sizes) / 2**30))
    asked = []
    for step in make_data(store.url).train_dataloader():
        asked.append(step)
        assert sum(path.stat().st_size for path in cache.glob("shards/*.tar")) <= 2 * max(sizes)
    assert seen(asked) == seen(make_data(store.folder).train_dataloader())
    join_prefetch()


def test_an_error_shows_at_the_read_that_needs_the_shard(
    store: Store, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ATTEMPTS", 1)
    data = make_data(store.url)
    store.faults = ["busy"] * 1000
    with pytest.raises(HubError, match="cannot be read from where it lies"):
        next(iter(data.train_dataloader()))
    join_prefetch()
    store.faults = []
    assert seen(data.train_dataloader()) == seen(make_data(store.folder).train_dataloader())
    join_prefetch()


def test_local_shards_need_no_thread(store: Store) -> None:
    steps = iter(make_data(store.folder).train_dataloader())
    next(steps)
    assert not prefetching()
