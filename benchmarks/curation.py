"""Curation at scale: seconds and memory of clusters, near duplicates and the sample; recall of planted duplicates.

    python -m benchmarks.curation                     # 100,000 x 512
    python -m benchmarks.curation --rows 1000000      # a million, on two cores

Prints one JSON line. Rows are drawn around 2,000 directions, in unequal numbers, and written as float16 parts like
those of `stage=query_features`; 3% of them are an earlier row again, at cosines of .97 and more. Everything runs in a
process of its own; `rss_mib` is the most that it held, memory-mapped pages of the features included.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from benchmarks.measure import in_fresh_process, report
from mmrlhf.curation.clusters import k_means, nearest_centres
from mmrlhf.curation.neighbours import Sameness, first_of_each, near_pairs
from mmrlhf.curation.quotas import ANY
from mmrlhf.curation.sampling import choose

DIM, THEMES, PLANTED, SAMPLE = 512, 2_000, 0.03, 30_000
SAME = 0.97
_PART = 65_536
_FOR_CENTRES = 200_000


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point is not None:
        print(json.dumps(curate(Path(options.point["folder"]), options.point["rows"], options.point["threads"])))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_rows(Path(folder), options.rows)
        point = {"folder": folder, "rows": options.rows, "threads": options.threads}
        found = in_fresh_process("benchmarks.curation", point)
    report(benchmark="curation", rows=options.rows, dim=DIM, threads=options.threads, **found)


def write_rows(folder: Path, rows: int) -> None:
    """Write rows in parts, and which were planted: (copy, original) in `planted.npy`."""
    generator = torch.Generator().manual_seed(0)
    rng = np.random.default_rng(0)
    themes = normalize(torch.randn(THEMES, DIM, generator=generator), dim=1)
    sizes = rng.zipf(1.5, THEMES).clip(max=1000).astype(float)
    planted: list[np.ndarray] = []
    for number, start in enumerate(range(0, rows, _PART)):
        count = min(_PART, rows - start)
        theme = torch.from_numpy(rng.choice(THEMES, count, p=sizes / sizes.sum()))
        part = normalize(themes[theme] + 0.8 * _noise(count, generator), dim=1)
        copies = int(PLANTED * count)
        places = rng.permutation(count)[: 2 * copies].reshape(2, copies)
        places.sort(axis=0)  # the original comes first
        part[places[1]] = normalize(part[places[0]] + rng.uniform(0.02, 0.24) * _noise(copies, generator), dim=1)
        planted.append(places.T + start)
        np.save(folder / f"part-{number:05d}.npy", part.numpy().astype(np.float16))
    np.save(folder / "planted.npy", np.concatenate(planted))


def _noise(count: int, generator: torch.Generator) -> Tensor:
    return normalize(torch.randn(count, DIM, generator=generator), dim=1)


def curate(folder: Path, rows: int, threads: int) -> dict[str, Any]:
    """Duplicates, clusters and sample of rows on the disk, each timed."""
    torch.set_num_threads(threads)
    parts = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("part-*.npy"))]

    def take(wanted: np.ndarray) -> Tensor:
        found = np.empty((len(wanted), DIM), np.float32)
        part = wanted // _PART
        for number in np.unique(part):
            here = part == number
            found[here] = parts[number][wanted[here] - number * _PART]
        return torch.from_numpy(found)

    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        found = work()
        seconds[name] = round(time.perf_counter() - started, 1)
        return found

    started = time.process_time()
    pairs = timed("duplicates", lambda: near_pairs(take, np.zeros(rows, np.uint64), Sameness(SAME)))
    leader = timed("keep_first", lambda: first_of_each(rows, pairs.first, pairs.second))
    kept = np.flatnonzero(leader == np.arange(rows))
    centres = timed("k_means", lambda: _centres(take, kept))
    chunks = (take(kept[start : start + _PART]) for start in range(0, len(kept), _PART))
    cluster, _ = timed("clusters", lambda: nearest_centres(chunks, centres))
    any_type = np.full(len(kept), ANY, dtype=object)
    chosen = timed("sample", lambda: choose(lambda places: take(kept[places]), any_type, cluster[:, 0], {ANY: SAMPLE}))
    planted = np.load(folder / "planted.npy")
    cosines = (take(planted[:, 0]) * take(planted[:, 1])).sum(1).numpy()
    planted = planted[cosines >= SAME]
    known = pairs.first * np.int64(rows) + pairs.second
    recall = float(np.isin(planted[:, 0] * np.int64(rows) + planted[:, 1], known).mean())
    return {
        "seconds": seconds,
        "wall_seconds": round(sum(seconds.values()), 1),
        "cpu_seconds": round(time.process_time() - started, 1),
        "rss_mib": round(_peak_mib()),
        "planted": len(planted),
        "recall": round(recall, 4),
        "pairs": len(pairs.first),
        "kept": len(kept),
        "sampled": len(chosen),
    }


def _centres(take: Callable[[np.ndarray], Tensor], kept: np.ndarray) -> Tensor:
    some = np.sort(np.random.default_rng(0).permutation(kept)[:_FOR_CENTRES])
    return k_means(take(some), 100, seed=0)


def _peak_mib() -> float:
    """The most that this process has held so far; Linux counts in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


if __name__ == "__main__":
    main()
