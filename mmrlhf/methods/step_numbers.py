"""What one step saw, boiled down to numbers that are the same on every rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AllReduce = Callable[[Tensor, str], Tensor]


class StepRecord:
    """Detached per-item values of a step (of pairs, of responses), gathered over micro-batches, then over ranks.

    Every rank must add the same names in the same order. Items of weight 0 leave no trace.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._weights: dict[str, list[Tensor]] = {}
        self._spread: set[str] = set()

    def add(self, name: str, values: Tensor, weight: Tensor | None = None, *, spread: bool = False) -> None:
        """Add one micro-batch's values (n,) with weights (n,), 1 if not given; `spread` also reports std, min, max."""
        values = values.detach().float()
        weight = torch.ones_like(values) if weight is None else weight.detach().to(values)
        if values.shape != weight.shape or values.ndim != 1:
            raise ValueError(f"{name}: values {tuple(values.shape)}, weights {tuple(weight.shape)}: both must be (n,)")
        self._values.setdefault(name, []).append(torch.where(weight > 0, values, 0.0))
        self._weights.setdefault(name, []).append(weight)
        if spread:
            self._spread.add(name)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def values(self, name: str) -> Tensor:
        """This rank's values of positive weight (n,)."""
        values, weights = torch.cat(self._values[name]), torch.cat(self._weights[name])
        return values[weights > 0]

    def reduce(self, all_reduce: AllReduce) -> dict[str, float]:
        """Weighted means over all ranks; where spread was asked for, also `<name>_std`, `_min`, `_max`.

        A name without items is absent.

        Args:
            all_reduce: takes a tensor and "sum" or "max", and returns it reduced over ranks.
        """
        if not self._values:
            return {}
        joined = {n: (torch.cat(self._values[n]).double(), torch.cat(self._weights[n]).double()) for n in self._values}
        sums = all_reduce(torch.stack([torch.stack(((v * w).sum(), w.sum())) for v, w in joined.values()]), "sum")
        totals = dict(zip(joined, sums.tolist(), strict=True))
        result = {name: total / count for name, (total, count) in totals.items() if count > 0}
        chosen = [name for name in joined if name in self._spread]
        if chosen:
            # About the mean of all ranks: the mean of squares less the squared mean leaves nothing of a small spread.
            away = [(w * (v - result.get(name, 0.0)) ** 2).sum() for name in chosen for v, w in [joined[name]]]
            squares = all_reduce(torch.stack(away), "sum").tolist()
            ends = all_reduce(torch.stack([_ends(self.values(name)) for name in chosen]), "max").tolist()
            for name, square, (low, high) in zip(chosen, squares, ends, strict=True):
                if name in result:
                    result[f"{name}_std"] = (square / totals[name][1]) ** 0.5
                    result |= {f"{name}_min": -low, f"{name}_max": high}
        return result


def _ends(values: Tensor) -> Tensor:
    """(-min, max) in float64, so that one MAX reduction serves both; -inf for no values.

    One type on every rank, whether it has values or not: a reduction of two types reads memory that is not there.
    """
    if len(values) == 0:
        return torch.full((2,), -torch.inf, dtype=torch.float64, device=values.device)
    return torch.stack((-values.min(), values.max())).double()
