"""Several shard sets as one folder of shards: links to the sets, with one index and one manifest for all.

Inside a mixture a shard is called SET/shard-00000.tar and a sample SET/key, so that equal keys of two sets stay apart.
On which side of the split a sample lies still follows from its own key: a query that is in two sets is on the same
side in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mmrlhf.errors import ConfigError
from mmrlhf.files import expanded, is_remote
from mmrlhf.shards.index import Index
from mmrlhf.shards.manifest import check_shards, read_index, write_index
from mmrlhf.shards.scan import SCHEMA, ShardScan

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def write_mixture(sets: Mapping[str, Path | str], out: Path) -> Index:
    """Write a folder that reads like one set of shards; no shard is copied.

    Args:
        sets: name of each set, used in `Mixing.weights`, and its folder on this machine.
        out: the folder; made if needed.

    Raises:
        ConfigError: no sets, a name with other characters than letters, digits, `_` and `-`, or a set at an address.
        DataError: a folder without index, or shards that are not as they were written.
    """
    wrong = [name for name in sets if not _NAME.fullmatch(name)]
    if not sets or wrong:
        raise ConfigError(
            "shard sets need names", where="inputs.mixture", given=wrong or sets,
            expected="at least one {name: folder}, with names of letters, digits, _ and -",
        )  # fmt: skip
    remote = [f"{name}: {place}" for name, place in sets.items() if is_remote(place)]
    if remote:
        raise ConfigError(
            "a mixture is made of sets on this machine", where="inputs.mixture", given=", ".join(remote),
            expected="folders", fix="copy the set and check the copy with stage=verify, or train on it alone: "
            "inputs.shards=ADDRESS",
        )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    scans: list[ShardScan] = []
    for name, folder in sets.items():
        place = expanded(folder).resolve()
        link = out / name
        link.unlink(missing_ok=True)
        link.symlink_to(place)
        scans += _scans(name, place)
    write_index(out, scans)
    return Index.load(out)


def _scans(name: str, folder: Path) -> list[ShardScan]:
    """A set's shards under the names that they have in the mixture."""
    shards, _, table = read_index(folder)
    check_shards(folder, shards, table)  # what a manifest counts too few of would be left out below
    for column in ("key", "shard"):
        place = SCHEMA.names.index(column)
        table = table.set_column(place, SCHEMA.field(column), _prefixed(name, table.column(column)))
    scans, start = [], 0
    for shard in shards:
        scans.append(ShardScan(f"{name}/{shard.name}", shard.bytes, shard.sha256, table.slice(start, shard.count)))
        start += shard.count
    return scans


def _prefixed(name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(name, values, "/")  # pyright: ignore[reportAttributeAccessIssue]
