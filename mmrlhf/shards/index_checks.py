"""The rows of an index that anyone may have written: places inside the shards, and values that a sample can have.

Everything that plans a run reads these columns, so a value that no scan would write ends the run here, by its column,
and not somewhere in an epoch.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmrlhf.errors import DataError
from mmrlhf.files import LARGEST_FILE
from mmrlhf.parts import remedy

_MEMBERS = ("names", "offsets", "sizes", "crc32")
# column -> the least and the most that it may hold (a record is read whole, so there are no more characters than bytes)
_RANGES: Mapping[str, tuple[float, float]] = {
    "num_responses": (0, math.inf), "num_pairs": (0, math.inf), "num_images": (0, math.inf),
    "num_frames": (0, math.inf), "duration": (0, sys.float_info.max), "text_chars": (0, LARGEST_FILE),
    "critique_chars": (0, LARGEST_FILE), "split_hash": (0, math.nextafter(1, 0)), "rank_range": (0, math.inf),
}  # fmt: skip


def check_rows(where: Path, ends: Mapping[str, int], table: pa.Table) -> None:
    """Make sure that every row describes a sample.

    Args:
        where: the index.
        ends: bytes of each shard, by name.
        table: one chunk per column, with the columns of `scan.SCHEMA`.

    Raises:
        DataError: values are missing or impossible, a key comes twice, a sample has no record or one member twice, or a
            member lies outside of its shard; names the columns.
    """
    lacking = [name for name, column in zip(table.schema.names, table.columns, strict=True) if _lacks(column)]
    if lacking:
        raise _unusable(where, f"missing values in {', '.join(lacking)}")
    wrong = [name for name, bounds in _RANGES.items() if not _in_range(table.column(name), *bounds)]
    if not _pairs_of_sides(table.column("image_sizes"), table.column("num_images").to_numpy()):
        wrong.append("image_sizes")
    if not _pairs_of_sides(table.column("video_size"), table.column("num_frames").to_numpy() > 0):
        wrong.append("video_size")
    if not _described(table.column("more_clips"), 4):
        wrong.append("more_clips")
    if not _described(table.column("own_media"), 2, table.column("num_responses").to_numpy()):
        wrong.append("own_media")
    if wrong:
        raise _unusable(where, f"values that no sample has in {', '.join(wrong)}")
    if pc.count_distinct(table.column("key")).as_py() < len(table):  # pyright: ignore[reportAttributeAccessIssue]
        raise _unusable(where, "keys that come twice")
    _check_members(where, ends, table)


def _lacks(column: pa.ChunkedArray) -> bool:
    inner = column.combine_chunks().flatten() if pa.types.is_list(column.type) else None
    return bool(column.null_count or (inner is not None and inner.null_count))


def _in_range(column: pa.ChunkedArray, least: float, most: float) -> bool:
    values = column.to_numpy()
    return bool(((values >= least) & (values <= most)).all())


def _pairs_of_sides(column: pa.ChunkedArray, wanted: np.ndarray) -> bool:
    """Whether each row holds the two sides of as many pictures as it says (N,), none of them below 0."""
    sides = column.combine_chunks()
    counts = sides.value_lengths().to_numpy()
    return np.array_equal(counts, 2 * wanted.astype(np.int64)) and bool((sides.flatten().to_numpy() >= 0).all())


def _described(column: pa.ChunkedArray, size: int, wanted: np.ndarray | None = None) -> bool:
    """Whether each row holds nothing, or finite numbers of 0 or more: `size` for each of any, or of so many (N,)."""
    numbers = column.combine_chunks()
    counts, values = numbers.value_lengths().to_numpy(), numbers.flatten().to_numpy()
    whole = counts % size == 0 if wanted is None else counts == size * wanted.astype(np.int64)
    return bool(((counts == 0) | whole).all() and (np.isfinite(values) & (values >= 0)).all())


def _check_members(where: Path, ends: Mapping[str, int], table: pa.Table) -> None:
    names, offsets, sizes, checksums = (table.column(f"member_{name}").combine_chunks() for name in _MEMBERS)
    counts = names.value_lengths().to_numpy()
    if any(not np.array_equal(counts, each.value_lengths().to_numpy()) for each in (offsets, sizes, checksums)):
        raise _unusable(where, "names and places of members in different numbers")
    row = np.repeat(np.arange(len(table)), counts)
    encoded = names.flatten().dictionary_encode()
    known, number = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    records = np.bincount(row[number == known.index("json")] if "json" in known else row[:0], minlength=len(table))
    if (records != 1).any() or len(np.unique(row * max(1, len(known)) + number)) < len(row):
        raise _unusable(where, "samples without a record, or with a member that comes twice")
    start, size = offsets.flatten().to_numpy(), sizes.flatten().to_numpy()
    end = np.array([ends.get(name, -1) for name in table.column("shard").to_pylist()], dtype=np.int64)[row]
    outside = (start < 0) | (size < 0) | (size > end) | (start > end - size)
    if outside.any():
        raise _unusable(where, f"{int(outside.sum())} members that lie outside of their shard")


def _unusable(where: Path, given: str) -> DataError:
    return DataError(
        "index does not describe its shards", where=where, given=given, fix=remedy(where, "pack the data again")
    )
