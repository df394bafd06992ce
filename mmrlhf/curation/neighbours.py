"""Pairs of rows that are nearly the same, without comparing every two: cells, each row against its two nearest.

With sqrt(N) cells the work is that of N sqrt(N) products. A row against its own cell alone would miss 1-3% of pairs,
those that a border of cells runs through. Perceptual hashes propose, too: both numbers of every pair are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from mmrlhf.curation.clusters import k_means, nearest_centres
from mmrlhf.curation.hashes import bit_distance
from mmrlhf.terminal.progress import track

_ROWS_OF_A_CELL = 32  # rows for each cell that its centre is found from
# products of so many rows and keys stay in a processor's cache
_ROWS_AT_ONCE, _KEYS_AT_ONCE, _CHUNK = 1 << 10, 1 << 13, 1 << 16
# pairs of one row at most, with the earliest rows; more of them are a crowd around one picture
MOST = 64


class UnitRows(Protocol):
    """Unit rows that are read by number: (n,) -> (n, D) float32."""

    def __call__(self, rows: np.ndarray, /) -> Tensor: ...


@dataclass(frozen=True)
class Sameness:
    """When two rows are the same: cosine from `cosine` on, or from `cosine_with_hash` on with at most `bits` between
    their hashes."""

    cosine: float
    cosine_with_hash: float = 1.1
    bits: int = 0

    @property
    def least(self) -> float:
        """The lowest cosine of a pair."""
        return min(self.cosine, self.cosine_with_hash)

    def holds(self, cosine: np.ndarray, bits: np.ndarray) -> np.ndarray:
        """Which pairs (P,) are the same."""
        return (cosine >= self.cosine) | ((cosine >= self.cosine_with_hash) & (bits <= self.bits))


@dataclass(frozen=True)
class NearPairs:
    """Pairs (P,) of rows, `first` before `second`: their cosine, and the bits between their hashes (64: unknown).

    crowded: rows that had more than `MOST` partners in a cell, of which the earliest were taken.
    """

    first: np.ndarray
    second: np.ndarray
    cosine: np.ndarray
    bits: np.ndarray
    crowded: int = 0


def near_pairs(
    take: UnitRows,
    hashes: np.ndarray,
    same: Sameness,
    *,
    seed: int = 0,
    cells: int | None = None,
    progress: bool = False,
) -> NearPairs:
    """All pairs of rows 0 ... N - 1 that are the same, but for a few in a thousand that cells keep apart.

    Args:
        take: gives rows by number.
        hashes: (N,) uint64, 0 where there is none.
        cells: sqrt(N) by default.
    """
    n = len(hashes)
    cells = cells or max(1, math.isqrt(n))
    rng = np.random.default_rng(seed)
    sample = np.sort(rng.permutation(n)[: cells * _ROWS_OF_A_CELL])
    centres = k_means(take(sample), cells, seed=seed, iterations=5, careful=False)
    chunks = (take(np.arange(start, min(start + _CHUNK, n))) for start in range(0, n, _CHUNK))
    nearest, _ = nearest_centres(track(chunks, "cells", -(-n // _CHUNK), enabled=progress), centres, 2)
    found = list(_in_cells(take, nearest, hashes, same, len(centres), progress))
    found.append(_of_equal_hashes(take, hashes, same))
    first, second, cosine, bits, crowded = (np.concatenate(column) for column in zip(*found, strict=True))
    _, places = np.unique(first * np.int64(n) + second, return_index=True)
    return NearPairs(first[places], second[places], cosine[places], bits[places], len(np.unique(crowded)))


_Columns = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _in_cells(
    take: UnitRows, nearest: np.ndarray, hashes: np.ndarray, same: Sameness, num_cells: int, progress: bool
) -> Iterator[_Columns]:
    """Pairs of each cell's rows with all rows that it is one of the two nearest of."""
    homes = _rows_by_cell(nearest[:, 0], num_cells)
    others = _rows_by_cell(nearest[:, 1], num_cells) if nearest.shape[1] > 1 else [np.empty(0, np.int64)] * num_cells
    for home, other in track(zip(homes, others, strict=True), "near duplicates", num_cells, enabled=progress):
        if not len(home):
            continue
        asked = np.concatenate([home, other])
        blocks = [home[start : start + _KEYS_AT_ONCE] for start in range(0, len(home), _KEYS_AT_ONCE)]
        # a cell is seldom larger than one block, which then is read once
        only = take(home) if len(blocks) == 1 else None
        for start in range(0, len(asked), _ROWS_AT_ONCE):
            rows = asked[start : start + _ROWS_AT_ONCE]
            at_home = start + len(rows) <= len(home)
            given = only[start : start + len(rows)] if only is not None and at_home else take(rows)
            partners = np.zeros(len(rows), np.int64)
            for block in blocks:
                keys = take(block) if only is None else only
                yield _above(given @ keys.T, rows, block, hashes, same, partners)


def _above(
    cosines: Tensor, rows: np.ndarray, keys: np.ndarray, hashes: np.ndarray, same: Sameness, partners: np.ndarray
) -> _Columns:
    """Pairs of a product (rows, keys) that are the same; partners: how many each row (n,) has, which is added to."""
    at = (cosines >= same.least).nonzero().numpy()
    place, left, right = at[:, 0], rows[at[:, 0]], keys[at[:, 1]]
    cosine = cosines.numpy()[at[:, 0], at[:, 1]]
    bits = bit_distance(hashes[left], hashes[right])
    kept = (left != right) & same.holds(cosine, bits)
    place, left, right, cosine, bits = place[kept], left[kept], right[kept], cosine[kept], bits[kept]
    # keys ascend, so a row's first partners are its earliest
    starts = np.searchsorted(place, np.arange(len(rows)))
    few = partners[place] + np.arange(len(place)) - starts[place] < MOST
    partners += np.bincount(place, minlength=len(rows))
    crowded = np.unique(left[~few])
    left, right, cosine, bits = left[few], right[few], cosine[few], bits[few]
    return np.minimum(left, right), np.maximum(left, right), cosine, bits, crowded


def _of_equal_hashes(take: UnitRows, hashes: np.ndarray, same: Sameness) -> _Columns:
    """Pairs of each row with the first of its hash, wherever their cells are."""
    order = np.argsort(hashes, kind="stable")
    order = order[hashes[order] != 0]
    starts = np.r_[True, hashes[order][1:] != hashes[order][:-1]] if len(order) else np.empty(0, bool)
    first = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    left, right = first[~starts], order[~starts]
    parts = [
        (take(left[start : start + _CHUNK]) * take(right[start : start + _CHUNK])).sum(1).numpy()
        for start in range(0, len(left), _CHUNK)
    ]
    cosine = np.concatenate([np.empty(0, np.float32), *parts])
    kept = same.holds(cosine, np.zeros(len(left), np.int64))
    nobody = np.empty(0, np.int64)
    return left[kept], right[kept], cosine[kept], np.zeros(int(kept.sum()), np.int64), nobody


def _rows_by_cell(cell: np.ndarray, num_cells: int) -> list[np.ndarray]:
    """The rows of each cell, ascending."""
    order = np.argsort(cell, kind="stable")
    return np.split(order, np.cumsum(np.bincount(cell, minlength=num_cells))[:-1])


def first_of_each(n: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """For each row (N,) the earliest row that is kept and the same as it, or itself: keep-first.

    A row falls for one that is kept, never for one that fell: of A~B~C with A and C different, A and C are kept.

    Args:
        first, second: pairs (P,), first < second.
    """
    leader = np.arange(n)
    for place in np.lexsort((first, second)):
        early, late = int(first[place]), int(second[place])
        if leader[late] == late and leader[early] == early:
            leader[late] = early
    return leader
