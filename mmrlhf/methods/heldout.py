"""What a validation says about held-out pairs, and that it is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from mmrlhf.errors import ModelError

_SHOWN = 20


@dataclass(frozen=True)
class PairScores:
    """Held-out pairs as scored by the model in training: keys, chosen and rejected scores, one entry per pair."""

    keys: tuple[str, ...]
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]


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
