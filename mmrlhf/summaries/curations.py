"""What the stages that choose queries found: `query_features`, `curate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mmrlhf.summaries.summary import Summary


@dataclass(frozen=True)
class QueryFeaturesSummary(Summary):
    """Stage `query_features`: rows read and encoded, what is no query, and what has no features, by reason."""

    queries: int
    sets: Mapping[str, int]
    types: Mapping[str, int]
    rejected_by_reason: Mapping[str, int]
    without_features: Mapping[str, int]
    texts_cut: int
    dim: int
    encoder: str
    digest: str
