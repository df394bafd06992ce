"""Queries that could not be used, as every summary counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class LeftOutFor(Summary):
    """How many queries one reason left out, with the first keys."""

    reason: str
    queries: int
    keys: Sequence[str]


@dataclass(frozen=True)
class Quarantined(Summary):
    """How many queries of how many were left out, how many may be, and why (`mmrlhf.records.quarantine`)."""

    queries: int
    of: int
    at_most: int
    reasons: Sequence[LeftOutFor]
