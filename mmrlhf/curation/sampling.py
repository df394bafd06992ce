"""A sample of a pool by type and cluster: rows that are far from each other, or the paper's way, or plainly random.

Follows: MM-RLHF (arXiv 2502.10391, section 3.1): clusters of features, the same number from each. Differs in: clusters
that are smaller than their share pass it on (water filling), and inside a cluster rows are chosen by farthest point
(Gonzalez, 1985) from its middle on; `paper` draws them, `random` draws from everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mmrlhf.curation.neighbours import UnitRows
from mmrlhf.curation.quotas import ANY, water_fill

Arm = Literal["spread", "paper", "random"]
# rows of a cluster among which the farthest are looked for, and for each that is wanted; more are drawn from first
MOST_CANDIDATES, FOR_EACH = 20_000, 4


def choose(
    take: UnitRows,
    types: np.ndarray,
    clusters: np.ndarray,
    quotas: Mapping[str, int],
    *,
    arm: Arm = "spread",
    seed: int = 0,
) -> np.ndarray:
    """Numbers (n,) of the chosen rows, ascending.

    Args:
        take: gives unit rows by number.
        types, clusters: of each row (N,).
        quotas: rows that are wanted of each type; `ANY`: of all together. A type gives all that it has at most.
    """
    rng = np.random.default_rng(seed)
    chosen = [np.empty(0, np.int64)]
    for name, wanted in quotas.items():
        pool = np.arange(len(types)) if name == ANY else np.flatnonzero(types == name)
        if arm == "random":
            chosen.append(rng.permutation(pool)[:wanted])
            continue
        found, counts = np.unique(clusters[pool], return_counts=True)
        for cluster, share in zip(found, water_fill(counts, wanted), strict=True):
            members = pool[clusters[pool] == cluster]
            if arm == "paper" or share == len(members):
                chosen.append(rng.permutation(members)[:share])
            elif share:
                candidates = np.sort(rng.permutation(members)[: max(MOST_CANDIDATES, FOR_EACH * int(share))])
                chosen.append(candidates[farthest_points(take(candidates), int(share))])
    return np.sort(np.concatenate(chosen))


def farthest_points(rows: Tensor, number: int) -> np.ndarray:
    """Places (number,) of unit rows (n, D): the one nearest to their middle, then always the one farthest from all."""
    place = int((rows @ rows.mean(0)).argmax())
    chosen = [place]
    closest = rows @ rows[place]
    closest[place] = torch.inf
    while len(chosen) < number:
        place = int(closest.argmin())
        chosen.append(place)
        closest = torch.maximum(closest, rows @ rows[place])
        closest[place] = torch.inf
    return np.array(chosen)
