"""Which groups make up which optimizer step: pure functions, without iterator state.

The order of an epoch depends on (dataset digest, seed, epoch) alone, and a step is a slice of it; so a run can go on
from any step, with any number of ranks and workers. Only `micro_batches` knows the number of ranks, and only because
it shares out a step that is already fixed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mmrlhf.errors import ConfigError


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step: rows of the index (B,) and their weights (B,), 0 for groups that only fill it up.

    `step` counts from the start of the epoch.
    """

    epoch: int
    step: int
    indices: np.ndarray
    weights: np.ndarray

    @property
    def num_groups(self) -> int:
        """Groups of weight > 0."""
        return int((self.weights > 0).sum())


@dataclass(frozen=True)
class Quotas:
    """How many places each cell of rows has in an epoch.

    cell_of_row: the cell of each row (N,), places: of each cell (C,), names: of each cell.
    """

    cell_of_row: np.ndarray
    places: np.ndarray
    names: tuple[str, ...]


def fill_places(rows: np.ndarray, quotas: Quotas, *, digest: str, seed: int, epoch: int) -> np.ndarray:
    """Fill an epoch's places: positions in `rows` (sum of places,), cell by cell.

    A cell's places of all epochs, one behind another, are cut from its permutations, one behind another; so no row
    comes again before all others of its cell did.

    Args:
        rows: rows of the index (N,), ascending.
    """
    filled = []
    by_cell = np.argsort(quotas.cell_of_row, kind="stable")
    ends = np.cumsum(np.bincount(quotas.cell_of_row, minlength=len(quotas.places)))
    for name, places, end, start in zip(quotas.names, quotas.places.tolist(), ends, [0, *ends], strict=False):
        members = by_cell[start:end]
        first, size = epoch * places, len(members)
        for turn in range(first // size, -(-(first + places) // size)):
            philox = np.random.Philox(key=_hash(seed, f"{digest}\0{name}", turn))
            order = members[_permutation(philox, size)]
            filled.append(order[max(first - turn * size, 0) : first + places - turn * size])
    return np.concatenate(filled)


def epoch_order(
    indices: Sequence[int] | np.ndarray,
    *,
    digest: str,
    seed: int,
    epoch: int,
    shards: Sequence[int] | np.ndarray | None = None,
    window: int | None = None,
) -> np.ndarray:
    """Permute rows (N,) for one epoch.

    Philox keyed by BLAKE2 of (seed, digest, epoch), so that nearby seeds and epochs are unrelated. With `window`, the
    shards are permuted and cut into windows of that many, and rows are permuted inside their window: what a remote
    store wants, which fetches whole shards. Without it all rows are permuted together.

    Args:
        indices: rows of the index, in any order; the result does not depend on it. A row may come several times.
        digest: the dataset's digest.
        shards: the shard number of each row (N,), needed with `window`.
        window: shards per window.
    """
    rows = np.asarray(indices, dtype=np.int64)
    by_row = np.argsort(rows, kind="stable")
    philox = np.random.Philox(key=_hash(seed, digest, epoch))
    if window is None:
        return rows[by_row][_permutation(philox, len(rows))]
    if window < 1 or shards is None or len(shards) != len(rows):
        raise ConfigError("a shuffle window needs the shard of every row", given=window, expected="window >= 1")
    shard_of_row = np.asarray(shards)[by_row]
    names, position = np.unique(shard_of_row, return_inverse=True)
    window_of_shard = np.empty(len(names), np.int64)
    window_of_shard[_permutation(philox, len(names))] = np.arange(len(names)) // window
    return rows[by_row][np.lexsort((_permutation(philox, len(rows)), window_of_shard[position]))]


def num_steps(num_groups: int, groups_per_step: int) -> int:
    """Optimizer steps of an epoch; the last one is filled up."""
    if groups_per_step < 1:
        raise ConfigError("a step needs at least one group", given=groups_per_step, expected="groups_per_step >= 1")
    return -(-num_groups // groups_per_step)


def plan_step(order: np.ndarray, *, epoch: int, step: int, groups_per_step: int) -> StepPlan:
    """Cut step `step` out of an epoch's order; the tail is filled from the start of the order, at weight 0."""
    positions = np.arange(step * groups_per_step, (step + 1) * groups_per_step)
    weights = (positions < len(order)).astype(np.float32)
    return StepPlan(epoch, step, order[positions % len(order)], weights)


def micro_batches(costs: Sequence[int], *, token_budget: int, world_size: int) -> list[list[int]]:
    """Share a step's groups out into bins under a token budget: groups of like length together.

    Sorted by length, the groups are cut into rounds of about equal tokens; within a round, the longest first, each goes
    to the rank with the fewest tokens. Groups that run together are computed as a batch (`attention=sdpa`) whose
    entries are all as long as its longest: like lengths leave little padding.

    Args:
        costs: tokens of each group (B,).
        token_budget: the most tokens in a bin; a single group above it gets a bin of its own.
        world_size: ranks; bin j belongs to rank j % world_size.

    Returns:
        The fewest rounds that this rule fits into, of one bin for each rank, as positions in `costs`; longest groups
        first. Bins are empty only in the last round, where it has fewer groups than there are ranks.
    """
    if token_budget < 1 or world_size < 1:
        raise ConfigError("token budget and ranks must be positive", given=f"{token_budget} tokens, {world_size} ranks")
    total = sum(min(max(cost, 1), token_budget) for cost in costs)
    rounds = max(1, -(-total // (token_budget * world_size)))
    order = sorted(range(len(costs)), key=lambda i: (-costs[i], i))
    whole = sum(max(cost, 1) for cost in costs)
    while True:
        bins = list[list[int]]()
        for run in _cut(order, costs, rounds, at_least=world_size, left=whole):
            found = _lightest_first(run, costs, world_size)
            if any(len(members) > 1 and sum(costs[i] for i in members) > token_budget for members in found):
                break  # mostly the first run, so that many numbers of rounds are soon tried
            bins += found
        else:
            return bins
        rounds += 1


def _cut(order: Sequence[int], costs: Sequence[int], num_runs: int, *, at_least: int, left: int) -> Iterator[list[int]]:
    """Cut an order into runs of about equal cost, each of `at_least` groups but the last, which has one or more.

    Args:
        left: the cost of all.
    """
    start = 0
    for runs_left in range(num_runs, 0, -1):
        most = len(order) - ((runs_left - 2) * at_least + 1 if runs_left > 1 else 0)
        end = min(start + at_least, len(order))
        cost = sum(max(costs[i], 1) for i in order[start:end])
        # A group joins if at least half of it lies within this run's share of what is left.
        while end < most and (runs_left == 1 or cost + max(costs[order[end]], 1) / 2 <= left / runs_left):
            cost += max(costs[order[end]], 1)
            end += 1
        yield list(order[start:end])
        start, left = end, left - cost


def _lightest_first(run: Sequence[int], costs: Sequence[int], num_bins: int) -> list[list[int]]:
    """Put each group of a run, in its order, into the bin with the fewest tokens; fullest bin first."""
    loads = np.zeros(num_bins)
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    for index in run:
        lightest = int(loads.argmin())
        bins[lightest].append(index)
        loads[lightest] += max(costs[index], 1)
    return [sorted(bins[number]) for number in np.argsort(-loads, kind="stable")]


def _permutation(philox: np.random.Philox, length: int) -> np.ndarray:
    # NumPy keeps a bit generator's raw stream for ever, but not what Generator.permutation makes of it.
    return np.argsort(philox.random_raw(length), kind="stable")


def _hash(seed: int, text: str, epoch: int) -> int:
    digest = hashlib.blake2b(f"{seed}\0{epoch}\0{text}".encode(), digest_size=16).digest()
    return int.from_bytes(digest, "little")
