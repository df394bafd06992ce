"""The stage `index`: WebDataset tars that someone else wrote, made readable without copying them.

`python run.py stage=index inputs.tars=DIR`; training on them: `inputs.shards=stage:index inputs.tars=DIR`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import DataError
from mmrlhf.media.isolation import ProcessDied, map_isolated
from mmrlhf.shards.adopt import adopt_tars, find_tars, scan_or_report
from mmrlhf.shards.scan import ShardScan
from mmrlhf.terminal.progress import track

_SECONDS_PER_SHARD = 4 * 3600

# another number builds the stage anew, whatever `code` says
VERSION = 1
# what is in a finished artefact; checked before it is published
PROMISES = ("manifest.json", "index.parquet")


def run(out: Path, *, tars: Path, runtime: Runtime) -> dict[str, Any]:
    """Scan tars, and write index, manifest and links to them into `out`.

    Every sample needs a record, member `json`: a ranked one (`prompt`, `responses`) or a pair (`prompt`, `chosen`,
    `rejected`); its other members are its images, its frames (`f000.jpg`, ...) or its video.

    Args:
        out: the folder to fill; it is a packed set like those of the stage `pack`.
        tars: folder with the tars, uncompressed.
        runtime: `num_workers` processes scan side by side; 0 scans here.

    Raises:
        DataError: a damaged tar, or a sample without such a record, by shard, key and member.
    """

    def scan(paths: Iterable[Path]) -> Iterator[ShardScan | DataError]:
        return track(_scans(paths, runtime.num_workers), "index", len(find_tars(tars)), enabled=runtime.progress)

    index = adopt_tars(tars, out, scan=scan)
    entries = index.entries
    return {
        "shards": len(index.shards),
        "groups": len(index),
        "pairs": int(index.column("num_pairs").sum()),
        "responses": int(index.column("num_responses").sum()),
        "images": int(index.column("num_images").sum()),
        "videos": sum(entries[row].video_size is not None for row in range(len(index))),
        "bytes": sum(shard.bytes for shard in index.shards),
        "digest": index.digest,
    }


def _scans(paths: Iterable[Path], num_workers: int) -> Iterator[ShardScan | DataError]:
    if not num_workers:
        yield from map(scan_or_report, paths)
        return
    outcomes = map_isolated(scan_or_report, paths, num_processes=num_workers, timeout=_SECONDS_PER_SHARD)
    with closing(outcomes):
        for path, outcome in outcomes:
            died = isinstance(outcome, ProcessDied)
            yield DataError("tar ended the process that read it", where=path, given=str(outcome)) if died else outcome
