"""Best of n: what the judge's choice among n answers is worth, estimated from the answers that were drawn.

Follows: Nakano et al. 2021, "WebGPT" (arXiv 2112.09332), appendix I, for the estimate from all subsets of the answers;
Stiennon et al. 2020, "Learning to summarize from human feedback" (arXiv 2009.01325), for the distance
log n - (n - 1) / n, which is an upper bound of the KL (Beirami et al. 2024, arXiv 2401.01879); Gao et al. 2022,
"Scaling laws for reward model overoptimization" (arXiv 2210.10760), for reading both curves side by side.
Differs in: answers that were drawn several times, and answers with equal rewards, count as often as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def kl_bound(n: int) -> float:
    """Nats that the best of n answers is away from the policy, at most."""
    return math.log(n) - (n - 1) / n


def choice_probabilities(rewards: Sequence[float], drawn: Sequence[int], n: int) -> Floats:
    """How likely each of K different answers is the best of n, over all subsets of n of the answers that were drawn.

    Args:
        rewards: of the different answers (K,).
        drawn: how often each was drawn (K,); one that was not has probability 0.
        n: at most as many as were drawn; among equal rewards the choice is even, draw by draw.
    """
    total = sum(drawn)
    if not 1 <= n <= total or len(rewards) != len(drawn):
        raise ValueError(f"n must be 1 to the {total} answers that were drawn, got {n}; {len(rewards)} rewards")
    subsets, found, below = math.comb(total, n), np.zeros(len(rewards)), 0
    for reward in sorted(set(rewards)):
        equal = [place for place, other in enumerate(rewards) if other == reward]
        count = sum(drawn[place] for place in equal)
        if count == 0:
            continue
        chosen = (math.comb(below + count, n) - math.comb(below, n)) / subsets
        for place in equal:
            found[place] = chosen * drawn[place] / count
        below += count
    return found


def sizes_up_to(most: int) -> list[int]:
    """1, 2, 4, ... and the largest itself."""
    return sorted({*(2**power for power in range(most.bit_length())), most})
