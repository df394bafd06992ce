"""The stage `curate`: a diverse sample of sets of queries, as shards, with a page that shows what fell and why.

Follows: MM-RLHF (arXiv 2502.10391, section 3.1): features, clusters, the same number of each, 4:5:1 of types with fixed
shares of safety and video. Differs in: `mmrlhf/curation/sampling.py`; near duplicates and benchmarks' pictures are out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.chain.runtime import Runtime
from mmrlhf.curation.clusters import k_means, nearest_centres
from mmrlhf.curation.diversity import cosine_to_sample, effective_number
from mmrlhf.curation.duplicates import BENCHMARK, KEPT, Decisions, DuplicateSettings, decide
from mmrlhf.curation.feature_parts import Features
from mmrlhf.curation.query_rows import Queries
from mmrlhf.curation.quotas import ANY, type_quotas
from mmrlhf.curation.sample_page import PAGE, write_page
from mmrlhf.curation.sample_shards import write_sample
from mmrlhf.curation.sampling import Arm, choose
from mmrlhf.errors import DataError
from mmrlhf.files import write_bytes, written
from mmrlhf.ranges import Count, Natural, NonNegative, Positive, Share
from mmrlhf.shards.index import Index
from mmrlhf.summaries.curations import CurateSummary, TypeShare

log = logging.getLogger(__name__)

SHARDS, DECISIONS = "shards", "decisions.parquet"
SAMPLED, NOT_CHOSEN = "sampled", "not chosen"
_ROWS_FOR_CENTRES, _ROWS_MEASURED = 200_000, 20_000

# another number builds the stage anew, whatever `code` says
VERSION = 2
# what is in a finished artefact; checked before it is published
PROMISES = ("shards/manifest.json", "shards/index.parquet", "decisions.parquet", "report.html", "metrics.json")


def run(
    out: Path,
    *,
    features: Path,
    size: Count,
    mix: Mapping[str, NonNegative] | None = None,
    fixed: Mapping[str, Share] | None = None,
    arm: Arm = "spread",
    clusters: Count = 100,
    duplicates: bool = True,
    cosine: Share = 0.97,
    cosine_with_hash: Share = 0.9,
    bits: Natural = 6,
    text_cosine: Share = 0.9,
    words: Share = 0.8,
    per_picture: Count = 3,
    max_groups_per_shard: Count = 1000,
    max_megabytes: Positive = 1024,
    seed: Natural = 0,
    runtime: Runtime,
) -> dict[str, Any]:
    """Write `out/shards`, the sample, `out/decisions.parquet`, what became of every query, and `out/report.html`.

    Args:
        out: the folder to fill.
        features: what stage `query_features` wrote.
        size: queries that are wanted.
        mix: type -> its part of what fixed shares leave; None: all types together.
        fixed: type -> share of `size`.
        arm: "spread": the same number of each cluster, far from each other inside it; "paper": drawn inside; "random":
            drawn from everything.
        clusters: of the pool's features.
        duplicates: leave out near duplicates, crowds on one picture, and what is too close to a benchmark.
        cosine: from which on two pictures are the same, whatever their hashes say.
        cosine_with_hash: from which on they are where their perceptual hashes differ in at most `bits` bits of 64.
        bits: see there.
        text_cosine: from which on two queries without pictures may be the same.
        words: share of common words from which on two questions are the same.
        per_picture: questions on one picture that are kept.
        max_groups_per_shard, max_megabytes: a shard is finished when it reaches either.
        seed: of seeds of clusters and of draws.

    Raises:
        ConfigError: a type that no query has, or shares that are none.
        DataError: features of other rows, a damaged folder, nothing left to choose from, or chosen queries that can no
            longer be read.
    """
    queries = Queries(features / "queries")
    found = Features(features / "features", queries)
    pool = np.flatnonzero(~queries.against)
    quotas = type_quotas(size, Counter(queries.types[pool].tolist()), mix, fixed or {})
    settings = DuplicateSettings(cosine, cosine_with_hash, bits, text_cosine, words, per_picture)
    decided = decide(queries, found, settings if duplicates else None, seed=seed, progress=runtime.progress)
    kept = _kept(features, queries, decided, pool, quotas)
    cluster = _clusters(found, pool, kept, clusters, seed)
    chosen = kept[choose(lambda rows: found.take(kept[rows]), queries.types[kept], cluster[kept], quotas, arm=arm,
                         seed=seed)]  # fmt: skip
    _write_decisions(out, queries, decided, cluster, chosen)
    lost = write_sample(
        out / SHARDS, queries, found, chosen,
        lambda row: {"set": queries.sets[row], "cluster": int(cluster[row]), "arm": arm},
        max_groups_per_shard=max_groups_per_shard, max_megabytes=max_megabytes, max_damaged=runtime.max_damaged,
        progress=runtime.progress,
    )  # fmt: skip
    summary = _summary(out, queries, found, decided, cluster, pool, kept, chosen, quotas, lost, arm)
    thresholds = {"cosine": cosine, "cosine with hash": cosine_with_hash, "bits": bits}
    page = write_page(queries, found, decided, cluster, kept, chosen, summary, thresholds, seed=seed)
    write_bytes(out / PAGE, page.encode("utf-8", errors="backslashreplace"))
    _warn(summary)
    return summary.write(out)


def _kept(
    features: Path, queries: Queries, decided: Decisions, pool: np.ndarray, quotas: Mapping[str, int]
) -> np.ndarray:
    """The rows of the pool that are kept; raises DataError where none of them is of a type that is wanted."""
    wanted = pool
    if ANY not in quotas:
        wanted = pool[np.isin(queries.types[pool], [name for name, number in quotas.items() if number])]
    fates = Counter(decided.fate[wanted].tolist())
    if not fates[KEPT]:
        raise DataError(
            "no query is left to choose from", where=features,
            given=", ".join(f"{count} x {fate}" for fate, count in fates.items() if count),
            fix="look at the thresholds, and at stage=query_features for queries without features",
        )  # fmt: skip
    return pool[decided.fate[pool] == KEPT]


def _clusters(features: Features, pool: np.ndarray, kept: np.ndarray, number: int, seed: int) -> np.ndarray:
    """The cluster of each row (N,) of the pool that has features; -1 elsewhere. Centres are of kept rows."""
    rng = np.random.default_rng(seed)
    centres = k_means(features.take(np.sort(rng.permutation(kept)[:_ROWS_FOR_CENTRES])), number, seed=seed)
    with_features = pool[~np.isin(pool, list(features.left_out))]
    nearest, _ = nearest_centres(features.chunks(with_features), centres)
    found = np.full(len(features), -1)
    found[with_features] = nearest[:, 0]
    return found


def _write_decisions(out: Path, queries: Queries, decided: Decisions, cluster: np.ndarray, chosen: np.ndarray) -> None:
    """One row for each query: what became of it, and because of which other."""
    fate = np.where(queries.against, "against", decided.fate).astype(object)
    fate[fate == KEPT] = NOT_CHOSEN
    fate[chosen] = SAMPLED
    keys = queries.keys()
    because = pa.array(np.maximum(decided.because, 0), mask=decided.because < 0)
    table = pa.table(
        {
            "key": keys,
            "set": pa.array(queries.sets).dictionary_encode(),
            "type": pa.array(queries.types).dictionary_encode(),
            "cluster": pa.array(cluster, pa.int32(), mask=cluster < 0),
            "fate": pa.array(fate).dictionary_encode(),
            "because": keys.take(because),
        }
    )
    out.mkdir(parents=True, exist_ok=True)
    with written(out / DECISIONS) as part:
        pq.write_table(table, part, compression="zstd")


def _summary(
    out: Path,
    queries: Queries,
    features: Features,
    decided: Decisions,
    cluster: np.ndarray,
    pool: np.ndarray,
    kept: np.ndarray,
    chosen: np.ndarray,
    quotas: Mapping[str, int],
    lost: Mapping[str, int],
    arm: str,
) -> CurateSummary:
    types = queries.types
    names = list(quotas) if ANY in quotas else sorted({*quotas, *types[pool].tolist()})
    rng = np.random.default_rng(0)
    measured = np.sort(rng.permutation(kept)[:_ROWS_MEASURED])
    cosines = cosine_to_sample(features.take, measured, chosen)

    def count(rows: np.ndarray, name: str) -> int:
        return len(rows) if name == ANY else int((types[rows] == name).sum())

    index = Index.load(out / SHARDS)
    fates = Counter(decided.fate[pool].tolist())
    bench = pool[decided.fate[pool] == BENCHMARK]
    return CurateSummary(
        arm=arm,
        pool=len(pool),
        fell={fate: number for fate, number in fates.most_common() if fate != KEPT},
        close_to=dict(Counter(queries.sets[decided.because[bench]].tolist())),
        crowded=decided.pairs.crowded,
        types={
            name: TypeShare(count(pool, name), count(kept, name), quotas.get(name, 0), count(chosen, name))
            for name in names
        },
        wanted=sum(quotas.values()),
        groups=len(index),
        lost=dict(lost),
        clusters=len(np.unique(cluster[kept])),
        effective_clusters_of_pool=effective_number(cluster[kept]),
        effective_clusters=effective_number(cluster[chosen]),
        cosine_mean=float(cosines.mean()),
        cosine_low=float(np.quantile(cosines, 0.01)),
        digest=index.digest,
    )


def _warn(summary: CurateSummary) -> None:
    for name, share in summary.types.items():
        if share.sampled < share.wanted:
            log.warning("%s: %d of %d are there; no other type fills the gap", name, share.sampled, share.wanted)
    if summary.lost:
        log.warning("%d chosen queries could not be read any more: %s", sum(summary.lost.values()), summary.lost)
