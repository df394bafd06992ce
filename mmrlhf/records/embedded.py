"""Media that lie inside a record (a Parquet column, base64 in JSON) instead of in a file of their own.

A record keeps only where they lie and their hash; the bytes are read again when they are packed, so that a table of
many gigabytes passes through without being held in memory. What a program yields lies nowhere: its bytes are kept.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from mmrlhf.errors import DataError
from mmrlhf.records.json_arrays import read_row_at
from mmrlhf.records.json_text import Kept

Steps = tuple[str | int, ...]
_DATA_URL = re.compile(r"data:[\w.+/-]*;base64,")
# how base64 of JPEG, PNG, GIF, WebP and MP4 files begins
_BASE64_OF_MEDIA = re.compile(r"/9j/|iVBORw0KGgo|R0lGOD|UklGR|AAAA\w{4,6}Z0eX")
_MAY_EMBED = re.compile(rb'"bytes"|;base64,|"(?:\\?/9j\\?/|iVBORw0KGgo|R0lGOD|UklGR|AAAA\w{4,6}Z0eX)')
_SHORTEST_BASE64 = 100
_OF_PNG = frozenset({"1", "L", "LA", "P", "I", "I;16", "RGB", "RGBA"})


@dataclass(frozen=True)
class Place:
    """Where a value lies in a file of records.

    Args:
        file: the table or file of JSON.
        at: row of a Parquet or Arrow file, or byte at which a record of JSON begins.
        steps: the way from the record to the value, e.g. ("images", 0, "bytes").
    """

    file: Path
    at: int
    steps: Steps

    def value(self) -> Any:
        """Read the value again; raises what reading a file that has changed raises."""
        value: Any
        suffix, steps = self.file.suffix.lower(), self.steps
        if suffix in (".parquet", ".arrow"):
            read = _parquet_cell if suffix == ".parquet" else _arrow_cell
            value, steps = read(self.file, str(steps[0]), self.at), steps[1:]
        else:
            value = _json_row(self.file, self.file.stat().st_mtime_ns, self.at)
        for step in steps:
            value = value[step]
        return value


@dataclass(frozen=True)
class Embedded(Kept):
    """One media file inside a record.

    Args:
        digest: 16 hex digits that identify the bytes.
        source: where they lie, or the bytes themselves.
        name: what the record calls the file, or "".
    """

    digest: str
    source: Place | bytes = field(repr=False)
    name: str = ""

    def __str__(self) -> str:
        return f"embedded {self.digest}"

    def read(self) -> bytes:
        """Read the bytes again.

        Raises:
            DataError: the file changed since the record was read.
        """
        if isinstance(self.source, bytes):
            return self.source
        try:
            data = to_bytes(self.source.value())
        except (OSError, pa.ArrowException, IndexError, KeyError, TypeError, DataError) as error:
            raise self._changed(self.source, f"{type(error).__name__}: {error}") from error
        if data is None or digest_of(data) != self.digest:
            raise self._changed(self.source, "other bytes")
        return data

    def _changed(self, place: Place, given: str) -> DataError:
        where = f"{place.file}:{place.at}"
        return DataError("embedded media changed while they were packed", where=where, given=given)


def may_embed(raw: bytes) -> bool:
    """Say whether JSON may hold media; `embed_media` changes nothing where it may not."""
    return _MAY_EMBED.search(raw) is not None


def embed_media(row: Mapping[str, Any], file: Path | None = None, at: int = 0) -> dict[str, Any]:
    """Return a record whose embedded media are `Embedded` and whose media in files are paths, at any depth.

    `{"bytes": ..., "path": ...}` (Hugging Face's image column), raw bytes, data URLs, base64 that begins as pictures
    and clips do, and what Pillow has opened are understood; anything else stays as it is, for the importer to complain
    about.

    Args:
        file, at: where the record lies, as in `Place`; without a file the bytes are kept.
    """
    source = None if file is None else partial(Place, file, at)
    return {name: value if name == "meta" else _embed(value, source, (name,)) for name, value in row.items()}


def _embed(value: Any, source: Callable[[Steps], Place] | None, steps: Steps) -> Any:
    if isinstance(value, str):
        data = _media_in_text(value)
        return value if data is None else _embedded(data, source, steps)
    if isinstance(value, bytes):
        return _embedded(value, source, steps)
    if isinstance(value, Image.Image):
        return _embedded(_encoded(value), source, steps)
    if isinstance(value, list | tuple):
        return [_embed(item, source, (*steps, number)) for number, item in enumerate(value)]
    if isinstance(value, Mapping):
        if "bytes" in value and value.keys() <= {"bytes", "path"}:
            return _image_struct(value, source, (*steps, "bytes"))
        return {name: _embed(item, source, (*steps, name)) for name, item in value.items()}
    return value


def _image_struct(value: Mapping[str, Any], source: Callable[[Steps], Place] | None, steps: Steps) -> Any:
    """What Hugging Face's image and video columns hold: bytes, or else a path, or neither where there is no medium."""
    name = value.get("path") if isinstance(value.get("path"), str) else ""
    if value["bytes"] is None:
        return name or None
    data = to_bytes(value["bytes"])
    return value if data is None else _embedded(data, source, steps, str(name))


def _embedded(data: bytes, source: Callable[[Steps], Place] | None, steps: Steps, name: str = "") -> Embedded:
    return Embedded(digest_of(data), data if source is None else source(steps), name)


def _media_in_text(text: str) -> bytes | None:
    if _DATA_URL.match(text) or (len(text) >= _SHORTEST_BASE64 and _BASE64_OF_MEDIA.match(text)):
        return to_bytes(text)
    return None


def _encoded(image: Image.Image) -> bytes:
    """A picture that Pillow has opened, upright; raises DataError for one that Pillow cannot read to its end."""
    out = io.BytesIO()
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        upright.save(out, format="PNG" if upright.mode in _OF_PNG else "TIFF")
    except Exception as error:  # as of any decoder: struct.error, TypeError, zlib.error, ...
        raise DataError(
            "a picture that Pillow has opened cannot be read",
            given=f"{type(error).__name__}: {error}", expected="a whole picture of a usual mode",
        ) from error  # fmt: skip
    return out.getvalue()


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
    return _row_group(file, file.stat().st_mtime_ns, group).column(column)[row - starts[group]].as_py()


@lru_cache(maxsize=64)
def _row_group_starts(file: Path, _changed: int) -> tuple[int, ...]:
    metadata, start, starts = pq.read_metadata(file), 0, []
    for group in range(metadata.num_row_groups):
        starts.append(start)
        start += metadata.row_group(group).num_rows
    return tuple(starts)


@lru_cache(maxsize=2)
def _row_group(file: Path, _changed: int, group: int) -> _RowGroup:
    """Records come up in the order of the file, so neighbours share a row group."""
    return _RowGroup(file, group)


class _RowGroup:
    """The columns of a row group, each read when it is first asked for: records may have pictures in several."""

    def __init__(self, file: Path, group: int) -> None:
        self._file, self._group = file, group
        self._columns: dict[str, pa.ChunkedArray] = {}

    def column(self, name: str) -> pa.ChunkedArray:
        """One column; raises what reading a file that has changed raises."""
        if name not in self._columns:
            with pq.ParquetFile(self._file) as table:
                self._columns[name] = table.read_row_group(self._group, columns=[name]).column(name)
        return self._columns[name]


@lru_cache(maxsize=1)
def _json_row(file: Path, _changed: int, at: int) -> dict[str, Any]:
    """A record of JSON: its media come up one after the other, and it is read whole for each."""
    return read_row_at(file, at)


def _arrow_cell(file: Path, column: str, row: int) -> Any:
    return _arrow_table(file, file.stat().st_mtime_ns).column(column)[row].as_py()


@lru_cache(maxsize=8)
def _arrow_table(file: Path, _changed: int) -> pa.Table:
    """An Arrow file as it lies on the disk: the rows are in memory only where they are looked at."""
    return open_arrow(file).read_all()


def open_arrow(file: Path) -> pa.RecordBatchStreamReader | pa.RecordBatchFileReader:
    """Open an Arrow file of either sort (a stream, as `save_to_disk` writes it, or a file with an index)."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(file)))
    except pa.ArrowInvalid:
        return pa.ipc.open_file(pa.memory_map(str(file)))
