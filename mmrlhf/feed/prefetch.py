"""Remote shards fetched ahead of use, in the order of the plan, while steps are trained or batches are scored.

One thread follows the plan. It fetches a shard as soon as the cache has room for it beside the shards that the epoch
still needs and those already fetched ahead; so what it fetches drives out nothing that is in use. It changes no result:
a shard that it has not brought is fetched by the read that needs it, where an error shows as well.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mmrlhf.feed.steps import RunPlan
from mmrlhf.shards.index import Index

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShardUse:
    """The steps, counted over all epochs, in which an epoch needs a shard for the first and for the last time."""

    shard: str
    first: int
    last: int


def shard_uses(
    plan: RunPlan, shard_of_row: np.ndarray, names: list[str], *, start: int, end: int
) -> Iterator[ShardUse]:
    """Yield what the steps [start, end) need, epoch by epoch, in the order of first use.

    Args:
        shard_of_row: number of the shard of every row of the index (N,); names: of the shards, by number.
    """
    per_epoch = plan.steps_per_epoch
    for epoch in range(start // per_epoch, -(-end // per_epoch)):
        begin, stop = max(start - epoch * per_epoch, 0), min(end - epoch * per_epoch, per_epoch)
        # the last step is filled up from the start of the order (`plan_step`)
        rows = np.resize(plan.order(epoch), per_epoch * plan.groups_per_step)
        shards = shard_of_row[rows[begin * plan.groups_per_step : stop * plan.groups_per_step]]
        steps = np.repeat(np.arange(begin, stop) + epoch * per_epoch, plan.groups_per_step)
        yield from _uses(shards, steps, names)


def batch_uses(batches: Sequence[Sequence[int]], shard_of_row: np.ndarray, names: list[str]) -> Iterator[ShardUse]:
    """Yield what one pass over batches of rows needs, batches counted as steps (arguments: see `shard_uses`)."""
    steps = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    rows = np.fromiter((row for batch in batches for row in batch), dtype=np.int64)
    return _uses(shard_of_row[rows], steps, names)


def _uses(shards: np.ndarray, steps: np.ndarray, names: list[str]) -> Iterator[ShardUse]:
    """shards: number of the shard that is needed at each place (n,); steps: the step of each place, ascending (n,)."""
    found, first = np.unique(shards, return_index=True)
    last = len(shards) - 1 - np.unique(shards[::-1], return_index=True)[1]
    for place in np.argsort(first):
        yield ShardUse(names[found[place]], int(steps[first[place]]), int(steps[last[place]]))


class ShardPrefetch:
    """A thread that fetches what is needed next; it ends with the process, or when it is told to.

    Args:
        uses: shards in the order of their first use.
        fetch: brings a shard into the cache, if it is not there.
        sizes: bytes of each shard.
        capacity: bytes of the cache.
    """

    def __init__(
        self, uses: Iterable[ShardUse], *, fetch: Callable[[str], object], sizes: Mapping[str, int], capacity: int
    ) -> None:
        self._uses, self._fetch, self._sizes, self._capacity = uses, fetch, sizes, capacity
        self._step = -1
        self._stopped = False
        self._held: dict[str, int] = {}  # shard -> the last step that needs it
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="shard prefetch", daemon=True)
        self.thread.start()

    def advance(self, step: int) -> None:
        """Say that a step is about to be trained: its shards have been read."""
        with self._changed:
            self._step = step
            self._changed.notify_all()

    def stop(self) -> None:
        """Fetch nothing more after the shard that is being fetched."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _run(self) -> None:
        for use in self._uses:
            with self._changed:
                self._changed.wait_for(lambda use=use: self._stopped or use.first <= self._step or self._fits(use))
                if self._stopped:
                    return
                self._held[use.shard] = use.last
                late = use.first <= self._step
            if not late:
                try:
                    self._fetch(use.shard)
                except Exception as error:
                    log.debug("%s could not be fetched ahead: %s", use.shard, error)

    def _fits(self, use: ShardUse) -> bool:
        self._held = {shard: last for shard, last in self._held.items() if last > self._step}
        return sum(self._sizes[shard] for shard in self._held.keys() | {use.shard}) <= self._capacity


def begin_prefetch(index: Index, uses: Callable[[np.ndarray, list[str]], Iterable[ShardUse]]) -> ShardPrefetch | None:
    """Begin to fetch what is needed where the shards are remote; None where they are not.

    Args:
        uses: (the shard's number of every row, names of the shards) -> what is needed.
    """
    remote = index.remote
    if remote is None:
        return None
    needed = uses(*index.shard_numbers())
    return ShardPrefetch(needed, fetch=remote.fetch, sizes=remote.sizes, capacity=remote.max_bytes)
