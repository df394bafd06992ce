"""Clusters of unit rows: k-means on the sphere, and the nearest centres of any number of rows, a chunk at a time.

Follows: k-means++ seeding (Arthur and Vassilvitskii, 2007) and Lloyd's iterations with centres brought back to length 1
(spherical k-means, Dhillon and Modha, 2001). A cluster that stays empty gets the row that fits its own centre least.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

# a product of rows and centres has at most so many numbers: what fits into a processor's cache is searched faster
_AT_ONCE, _FEWEST_ROWS, _MOST_ROWS = 1 << 21, 256, 1 << 14
_ROUNDING = 1e-6


def k_means(rows: Tensor, k: int, *, seed: int, iterations: int = 12, careful: bool = True) -> Tensor:
    """Centres (k', D) of unit rows (n, D), unit; k' <= k where rows are fewer, or equal.

    Args:
        careful: k-means++ seeding; without it seeds are drawn evenly, which is enough for cells of a search.
    """
    k = min(k, len(rows))
    generator = torch.Generator().manual_seed(seed)
    centres = _seeds(rows, k, generator) if careful else rows[torch.randperm(len(rows), generator=generator)[:k]]
    k = len(centres)
    for _ in range(iterations):
        nearest, cosine = nearest_centres([rows], centres)
        places = torch.from_numpy(nearest[:, 0])
        sums = torch.zeros_like(centres).index_add_(0, places, rows)
        empty = torch.bincount(places, minlength=k) == 0
        if empty.any():
            worst = torch.from_numpy(cosine[:, 0]).argsort()[: int(empty.sum())]
            sums[empty] = rows[worst]
        moved = normalize(sums, dim=1)
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _seeds(rows: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Rows drawn one by one, each with a probability that grows with its squared distance to those before it."""
    first = int(torch.randint(len(rows), (1,), generator=generator))
    chosen = [first]
    distance = _distance(rows, first)
    draws = torch.rand(k, generator=generator, dtype=torch.float64)
    for draw in draws[1:]:
        total = distance.double().cumsum(0)
        if total[-1] <= 0:  # all rows are among the seeds
            break
        place = min(int(torch.searchsorted(total, draw * total[-1], right=True)), len(rows) - 1)
        chosen.append(place)
        distance = torch.minimum(distance, _distance(rows, place))
    return rows[chosen].clone()


def _distance(rows: Tensor, place: int) -> Tensor:
    """Half the squared distance of each row (n,) to one of them; 0 where only rounding is between them."""
    found = 1 - rows @ rows[place]
    return torch.where(found > _ROUNDING, found, 0.0)


def nearest_centres(chunks: Iterable[Tensor], centres: Tensor, number: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centres (N, number) int64 of rows that come in chunks, nearest first, and their cosines."""
    number = min(number, len(centres))
    at_once = min(max(_AT_ONCE // len(centres), _FEWEST_ROWS), _MOST_ROWS)
    places, cosines = [np.empty((0, number), np.int64)], [np.empty((0, number), np.float32)]
    for chunk in chunks:
        for rows in chunk.split(at_once):
            found = (rows @ centres.T).topk(number, dim=1)
            places.append(found.indices.numpy())
            cosines.append(found.values.numpy())
    return np.concatenate(places), np.concatenate(cosines)
