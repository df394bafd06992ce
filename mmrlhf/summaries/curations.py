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


@dataclass(frozen=True)
class TypeShare(Summary):
    """Queries of one type: in the pool, kept, wanted, and sampled."""

    pool: int
    kept: int
    wanted: int
    sampled: int


@dataclass(frozen=True)
class CurateSummary(Summary):
    """Stage `curate`: what fell and why, shares of types, and how diverse the sample is.

    close_to: benchmark -> queries that fell for it; lost: reason -> chosen queries that could not be read any more;
    effective_clusters: as many equally large clusters would be as diverse (of the kept pool, and of the sample);
    cosine_mean, cosine_low: from a query of the pool to its nearest in the sample, mean and 1% quantile.
    """

    arm: str
    pool: int
    fell: Mapping[str, int]
    close_to: Mapping[str, int]
    crowded: int
    types: Mapping[str, TypeShare]
    wanted: int
    groups: int
    lost: Mapping[str, int]
    clusters: int
    effective_clusters_of_pool: float
    effective_clusters: float
    cosine_mean: float
    cosine_low: float
    digest: str
