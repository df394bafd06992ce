"""Media that lie inside a record (a Parquet column, base64 in JSON) instead of in a file of their own.

A record keeps only where they lie and their hash; the bytes are read again when they are packed, so that a table of
many gigabytes passes through without being held in memory.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmrlhf.errors import DataError
from mmrlhf.records.json_text import parse_row

_IMAGE_COLUMN = {"bytes", "path"}
_DATA_URL = re.compile(r"data:(?:image|video)/[\w.+-]+;base64,")


@dataclass(frozen=True)
class Embedded:
    """One media file inside a record.

    Args:
        file: the table or JSON-lines file.
        at: row of a Parquet file, or byte at which a line of JSON begins.
        steps: the way from the record to the value, e.g. ("images", 0, "bytes").
        digest: 16 hex digits that identify the bytes.
        name: what the record calls the file, or "".
    """

    file: Path
    at: int
    steps: tuple[str | int, ...]
    digest: str
    name: str = ""

    def __str__(self) -> str:
        return f"embedded {self.digest}"

    def read(self) -> bytes:
        """Read the bytes again.

        Raises:
            DataError: the file changed since the record was read.
        """
        try:
            data = to_bytes(self._value())
        except (OSError, pa.ArrowException, IndexError, KeyError, TypeError, DataError) as error:
            raise self._changed(f"{type(error).__name__}: {error}") from error
        if data is None or digest_of(data) != self.digest:
            raise self._changed("other bytes")
        return data

    def _value(self) -> Any:
        value: Any
        if self.file.suffix.lower() == ".parquet":
            value, steps = _parquet_cell(self.file, str(self.steps[0]), self.at), self.steps[1:]
        else:
            with self.file.open("rb") as stream:
                stream.seek(self.at)
                value, steps = parse_row(stream.readline(), str(self.file)), self.steps
        for step in steps:
            value = value[step]
        return value

    def _changed(self, given: str) -> DataError:
        return DataError("embedded media changed while they were packed", where=f"{self.file}:{self.at}", given=given)


def embed_media(row: Mapping[str, Any], file: Path, at: int) -> dict[str, Any]:
    """Return a record whose embedded media are `Embedded` and whose media in files are paths, wherever they stand.

    `{"bytes": ..., "path": ...}` (Hugging Face's image column), raw bytes, and base64 (alone under `bytes`, or as a
    data URL) are understood; anything else stays as it is, for the importer to complain about.
    """
    return {name: value if name == "meta" else _embed(value, file, at, (name,)) for name, value in row.items()}


def _embed(value: Any, file: Path, at: int, steps: tuple[str | int, ...]) -> Any:
    if isinstance(value, list):
        return [_embed(item, file, at, (*steps, number)) for number, item in enumerate(value)]
    name = ""
    if isinstance(value, Mapping):
        if not value or not value.keys() <= _IMAGE_COLUMN:
            return {key: _embed(item, file, at, (*steps, key)) for key, item in value.items()}
        path, content = value.get("path"), value.get("bytes")
        name = path if isinstance(path, str) else ""
        if content is None:
            return path if name else value
        value, steps = content, (*steps, "bytes")
    elif isinstance(value, str) and not _DATA_URL.match(value):
        return value
    data = to_bytes(value)
    return value if data is None else Embedded(file, at, steps, digest_of(data), name)


def to_bytes(value: Any) -> bytes | None:
    """Return bytes as they are and base64 (or a data URL of it) decoded; None for anything else."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(_DATA_URL.sub("", value, count=1), validate=True)
    except (binascii.Error, ValueError):
        return None


def digest_of(data: bytes) -> str:
    """16 hex digits that identify these bytes (BLAKE2b)."""
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _parquet_cell(file: Path, column: str, row: int) -> Any:
    starts = _row_group_starts(file, file.stat().st_mtime_ns)
    group = next(i for i in reversed(range(len(starts))) if starts[i] <= row)
    return _row_group(file, file.stat().st_mtime_ns, group, column)[row - starts[group]].as_py()


@lru_cache(maxsize=64)
def _row_group_starts(file: Path, _changed: int) -> tuple[int, ...]:
    metadata, start, starts = pq.read_metadata(file), 0, []
    for group in range(metadata.num_row_groups):
        starts.append(start)
        start += metadata.row_group(group).num_rows
    return tuple(starts)


@lru_cache(maxsize=2)
def _row_group(file: Path, _changed: int, group: int, column: str) -> pa.ChunkedArray:
    """One column of a row group: records come up in the order of the file, so neighbours share it."""
    with pq.ParquetFile(file) as table:
        return table.read_row_group(group, columns=[column]).column(column)
