"""What a validation says about held-out pairs, and that it is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mmrlhf.errors import ModelError
from mmrlhf.methods.step_numbers import AllReduce, StepRecord
from mmrlhf.metrics.ranking import PairAccuracy
from mmrlhf.processes import gather_ranks

_SHOWN = 20


@dataclass(frozen=True)
class PairScores:
    """Held-out pairs as scored by the model in training: keys, chosen and rejected scores, one entry per pair."""

    keys: tuple[str, ...]
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]


class Validation:
    """What one validation finds: means of what the method records, and the scores of held-out pairs.

    Args:
        device: of this rank, where its pairs are counted.

    Attributes:
        record: takes what the method records.
    """

    def __init__(self, device: torch.device) -> None:
        self.record = StepRecord()
        self._scores: list[PairScores] = []
        self._accuracy = PairAccuracy().to(device)
        self._accuracy.update(torch.zeros(0, device=device))  # a rank may get no pair

    def add(self, scores: PairScores) -> None:
        """Add a micro-batch's pairs."""
        self._scores.append(scores)
        gaps = [chosen - rejected for chosen, rejected in zip(scores.chosen, scores.rejected, strict=True)]
        self._accuracy.update(torch.tensor(gaps, dtype=torch.float64, device=self._accuracy.device))

    def metrics(self, all_reduce: AllReduce) -> dict[str, float]:
        """Means over all ranks, and how many of the held-out pairs are scored rightly; asked by every rank."""
        found = self.record.reduce(all_reduce)
        # The record's accuracy is that of the pairs that are trained on: fewer, more or others than the annotators'.
        found.pop("accuracy", None)
        accuracy = float(self._accuracy.compute())  # every rank: it sums over them
        return found if math.isnan(accuracy) else found | {"accuracy": accuracy}

    def scores(self) -> PairScores | None:
        """The pairs of all ranks in the order of their keys, None without any; asked by every rank."""
        gathered = [scores for share in gather_ranks(self._scores) for scores in share]
        every = sorted(row for s in gathered for row in zip(s.keys, s.chosen, s.rejected, strict=True))
        return PairScores(*(tuple(column) for column in zip(*every, strict=True))) if every else None


def require_finite_validation(metrics: Mapping[str, float], scores: PairScores | None, where: str) -> None:
    """Stop where a validation's loss or a held-out score is not finite; all ranks have the same numbers.

    Raises:
        ModelError: names the queries whose scores are not finite.
    """
    rows = zip(scores.keys, scores.chosen, scores.rejected, strict=True) if scores is not None else ()
    keys = list(dict.fromkeys(key for key, *pair in rows if not all(map(math.isfinite, pair))))
    if not keys and math.isfinite(metrics["loss"]):
        return
    wrong = [f"{name}={value}" for name, value in sorted(metrics.items()) if not math.isfinite(value)]
    named = f"; keys of the queries: {', '.join(keys[:_SHOWN])}" if keys else ""
    raise ModelError(
        "a validation gave numbers that are not finite",
        where=where + named,
        given=", ".join(wrong) or f"scores of {len(keys)} queries",
        expected="finite losses and scores",
        fix="look at these queries; if they are fine, try model.settings.precision=float32",
    )
