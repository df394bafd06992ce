"""How diverse a sample is, and how well it stands for its pool."""

from __future__ import annotations

import numpy as np
import torch

from mmrlhf.curation.neighbours import UnitRows

_ROWS_AT_ONCE = 1 << 12


def effective_number(labels: np.ndarray) -> float:
    """How many equally frequent labels would be as diverse: exp of the entropy (Hill number of order 1); 0 of none."""
    _, counts = np.unique(labels, return_counts=True)
    shares = counts / max(counts.sum(), 1)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(counts) else 0.0


def cosine_to_sample(take: UnitRows, pool: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """For each row of the pool (n,) the cosine to the row of the sample (m,) that is most like it: (n,)."""
    best = np.full(len(pool), -1.0, np.float32)
    for start in range(0, len(sample), _ROWS_AT_ONCE):
        chosen = take(sample[start : start + _ROWS_AT_ONCE])
        for begin in range(0, len(pool), _ROWS_AT_ONCE):
            here = slice(begin, begin + _ROWS_AT_ONCE)
            found = (take(pool[here]) @ chosen.T).max(dim=1).values
            best[here] = torch.maximum(found, torch.from_numpy(best[here])).numpy()
    return best
