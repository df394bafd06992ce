"""The stage `verify`: a packed set is still what was packed: sizes, SHA-256, CRC-32, schema.

`python run.py stage=verify inputs.shards=DIR`. A check is never reused: it runs each time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from mmrlhf.chain.runtime import Runtime
from mmrlhf.errors import ConfigError, DataError, Lines
from mmrlhf.files import is_remote, write_json
from mmrlhf.media.isolation import ProcessDied, map_isolated
from mmrlhf.parts import remedy
from mmrlhf.shards.checking import Problem, shard_rows, verify_shard
from mmrlhf.shards.manifest import Shard, read_index
from mmrlhf.terminal.progress import track

logger = logging.getLogger(__name__)

REPORT_FILE = "verify.json"
REUSABLE = False  # what was found once says nothing about now
# what is in a finished artefact; checked before it is published
PROMISES = (REPORT_FILE,)
_SECONDS_PER_SHARD = 4 * 3600

# another number builds the stage anew, whatever `code` says
VERSION = 1


def run(out: Path, *, shards: Path, media: bool = False, runtime: Runtime) -> dict[str, Any]:
    """Read every shard of a packed set in full and compare it with manifest and index.

    Args:
        out: gets `verify.json`: counts, and every problem with shard, key and member.
        shards: the packed set.
        media: also decode every image and video.
        runtime: `num_workers` processes read shards side by side; 0 reads here.

    Returns:
        Numbers of shards, groups and bytes.

    Raises:
        DataError: anything is not as it was packed; the first problems are named, all are in `verify.json`.
        ConfigError: remote shards.
    """
    if is_remote(shards):
        raise ConfigError(
            "remote shards are checked as they are fetched",
            where="inputs.shards", given=shards, expected="a folder", fix="copy them, and check the copy",
        )  # fmt: skip
    found, digest, table = read_index(shards)
    listed = sum(shard.count for shard in found)
    problems = [] if listed == len(table) else [Problem(f"index has {len(table)} rows, the shards {listed}", "index")]
    checks = _checks(shards, found, table, media, runtime.num_workers)
    for part in track(checks, "verify", len(found), enabled=runtime.progress):
        problems += part
    summary = {
        "shards": len(found),
        "groups": len(table),
        "bytes": sum(shard.bytes for shard in found),
        "digest": digest,
        "media_decoded": media,
        "problems": len(problems),
    }
    write_json(out / REPORT_FILE, {"summary": summary, "problems": [asdict(problem) for problem in problems]})
    if problems:
        raise DataError(
            f"{len(problems)} things are not as they were packed",
            where=shards,
            given=Lines(f"{item.where}: {item.problem}" for item in problems[:8]),
            expected=f"{len(table)} groups as index and manifest describe them; {out / REPORT_FILE} lists what differs",
            fix=f"copy or fetch these shards again, or {remedy(shards, 'pack them again')}",
        )
    logger.info("%d shards with %d groups are as they were packed", len(found), len(table))
    return summary


def _checks(
    folder: Path, shards: tuple[Shard, ...], table: pa.Table, media: bool, num_workers: int
) -> Iterator[list[Problem]]:
    check = partial(_check, folder, media)
    items = ((shard, shard_rows(table, shard.name)) for shard in shards)
    if not num_workers:
        yield from map(check, items)
        return
    outcomes = map_isolated(check, items, num_processes=num_workers, timeout=_SECONDS_PER_SHARD)
    with closing(outcomes):
        for (shard, _), outcome in outcomes:
            died = isinstance(outcome, ProcessDied)
            yield [Problem(f"reading it {outcome}", shard.name)] if died else outcome


def _check(folder: Path, media: bool, item: tuple[Shard, pa.Table]) -> list[Problem]:
    shard, rows = item
    return verify_shard(folder, shard, rows, media=media)
