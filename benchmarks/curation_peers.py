"""Clusters and near duplicates against faiss and scikit-learn, on the same drawn rows.

    OMP_NUM_THREADS=1 python -m benchmarks.curation_peers                  # 100,000 x 512, extra `bench`
    OMP_NUM_THREADS=1 python -m benchmarks.curation_peers --rows 200000

Prints a JSON line for each way: processor seconds; of clusters the mean cosine of rows to their centre, the share of
the largest, and how many are empty; of near duplicates how many of the planted ones were found. All get the same rows
in memory, the same number of clusters and iterations, and one thread. Rows are those of `benchmarks.curation`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.curation import DIM, SAME, write_rows
from benchmarks.measure import report
from mmrlhf.curation.clusters import k_means, nearest_centres
from mmrlhf.curation.neighbours import Sameness, near_pairs

CLUSTERS, ITERATIONS = 100, 12
T = TypeVar("T")
Pairs = tuple[np.ndarray, np.ndarray]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), options.rows)
        parts = [np.load(path) for path in sorted(Path(folder).glob("part-*.npy"))]
        rows = normalize(torch.from_numpy(np.concatenate(parts).astype(np.float32)), dim=1)
        planted = np.load(Path(folder) / "planted.npy")
    for name, cluster in (("ours", _ours), ("faiss", _faiss), ("faiss, its defaults", _faiss_as_it_is),
                          ("scikit-learn, mini-batches", _sklearn)):  # fmt: skip
        centres, seconds = _timed(lambda cluster=cluster: cluster(rows))
        nearest, cosine = nearest_centres([rows], centres)
        counts = np.bincount(nearest[:, 0], minlength=CLUSTERS)
        report(benchmark="clusters", way=name, rows=len(rows), cpu_seconds=seconds, cosine=float(cosine.mean()),
               largest=counts.max() / len(rows), empty=int((counts == 0).sum()))  # fmt: skip
    there = planted[(rows[planted[:, 0]] * rows[planted[:, 1]]).sum(1).numpy() >= SAME]
    for name, search in (("ours", _our_pairs), ("faiss, 1 cell", lambda rows: _faiss_pairs(rows, 1)),
                         ("faiss, 2 cells", lambda rows: _faiss_pairs(rows, 2))):  # fmt: skip
        (first, second), seconds = _timed(lambda search=search: search(rows))
        known = np.minimum(first, second) * len(rows) + np.maximum(first, second)
        recall = float(np.isin(there[:, 0] * len(rows) + there[:, 1], known).mean())
        report(benchmark="near duplicates", way=name, rows=len(rows), cpu_seconds=seconds, recall=recall,
               pairs=len(np.unique(known)))  # fmt: skip


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    started = time.process_time()
    return work(), round(time.process_time() - started, 1)


def _ours(rows: Tensor) -> Tensor:
    return k_means(rows, CLUSTERS, seed=0, iterations=ITERATIONS)


def _faiss(rows: Tensor) -> Tensor:
    return _faiss_centres(rows, max_points_per_centroid=len(rows))


def _faiss_as_it_is(rows: Tensor) -> Tensor:
    """It trains on 256 rows of a cluster and says nothing of it."""
    return _faiss_centres(rows)


def _faiss_centres(rows: Tensor, **more: int) -> Tensor:
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(1)
    found = faiss.Kmeans(DIM, CLUSTERS, niter=ITERATIONS, spherical=True, seed=0, **more)
    found.train(rows.numpy())
    return torch.from_numpy(found.centroids)


def _sklearn(rows: Tensor) -> Tensor:
    from sklearn.cluster import MiniBatchKMeans  # pyright: ignore[reportMissingImports]

    found = MiniBatchKMeans(CLUSTERS, batch_size=4096, n_init=1, random_state=0).fit(rows.numpy())  # pyright: ignore[reportArgumentType]
    return normalize(torch.from_numpy(found.cluster_centers_).float(), dim=1)


def _our_pairs(rows: Tensor) -> Pairs:
    found = near_pairs(lambda wanted: rows[wanted], np.zeros(len(rows), np.uint64), Sameness(SAME))
    return found.first, found.second


def _faiss_pairs(rows: Tensor, probes: int) -> Pairs:
    """All pairs of an inverted file of sqrt(N) cells, of which so many are searched."""
    import faiss  # pyright: ignore[reportMissingImports]

    faiss.omp_set_num_threads(1)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(DIM), DIM, math.isqrt(len(rows)), faiss.METRIC_INNER_PRODUCT)
    index.train(rows.numpy())
    index.add(rows.numpy())
    index.nprobe = probes
    limits, _, found = index.range_search(rows.numpy(), SAME)
    asked = np.repeat(np.arange(len(rows)), np.diff(limits.astype(np.int64)))
    return asked[asked != found], found[asked != found]


if __name__ == "__main__":
    main()
