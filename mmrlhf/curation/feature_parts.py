"""Features of queries: one file of float16 rows that is memory-mapped, filled in parts with checksums, resumable.

`features.f16` holds (N, D), unit rows or zeros, and nothing else. A part is so many rows of it, and `part-NNNNN.json`
has their checksum, the pictures' perceptual hashes, digests of media and texts, and the rows that have no features with
the reason. The JSON comes last, so a part without it is made again. Processes fill in parts of their own, whose borders
are those of pages, so that they may be on several machines.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmrlhf.curation.encoders import Encoder
from mmrlhf.curation.encoding import FeatureSettings, encode_rows
from mmrlhf.curation.query_rows import Queries
from mmrlhf.errors import DataError, UserError
from mmrlhf.files import read_regular, write_json
from mmrlhf.models.hub import format_bytes
from mmrlhf.parts import Parts, remedy
from mmrlhf.terminal.progress import track

log = logging.getLogger(__name__)

RECORD, ROWS = "features.json", "features.f16"
ROWS_PER_PART = 4096
_BYTES = 2  # of one number
# what is mapped at most before it is let go of, and what the kernel maps around one row that is read
_MOST_MAPPED, _AROUND = 1 << 30, 1 << 16


class PartMaker:
    """Makes parts of the features of some queries; any number of processes may, each parts of its own.

    Raises:
        UserError: the features do not fit on the disk.
        DataError: (`missing`) the folder holds parts of other rows or of another encoder; names what differs.
    """

    def __init__(self, folder: Path, queries: Queries, encoder: Encoder, settings: FeatureSettings) -> None:
        self.folder, self.queries, self.encoder, self.settings = folder, queries, encoder, settings
        self.width = encoder.dim * (2 if settings.of == "both" else 1)
        self.parts = Parts(folder, _made_by(queries, encoder, settings), what="features")

    def missing(self, *, rank: int = 0, ranks: int = 1) -> list[int]:
        """The numbers of the parts that are still to be made, of every `ranks`-th."""
        _check_room(self.folder, len(self.queries), self.width)
        wanted = range(rank, _num_parts(len(self.queries)), ranks)
        there = _RowsFile(self.folder, len(self.queries), self.width)
        missing = [number for number in wanted if not _whole(there, self.parts, number, self.rows(number))]
        if len(missing) < len(wanted):
            log.info("%d of %d parts of features were made before", len(wanted) - len(missing), len(wanted))
        return missing

    def rows(self, number: int) -> range:
        """The rows of a part."""
        return _rows_of(number, len(self.queries))

    def make(self, number: int, pool: ThreadPoolExecutor) -> None:
        """Make a part; the threads of the pool read and decode media."""
        found = encode_rows(self.queries, self.rows(number), self.encoder, self.settings, pool)
        content = found.features.tobytes()
        _write_rows(self.folder, number * ROWS_PER_PART * self.width * _BYTES, content)
        self.parts.write(
            _name(number),
            {
                "features_crc32": f"{zlib.crc32(content):08x}",
                **{name: _hex(getattr(found, name)) for name in ("hashes", "media", "texts")},
                "left_out": {str(row): reason for row, reason in found.left_out.items()},
                "texts_cut": found.texts_cut,
            },
        )

    def finish(self) -> None:
        """Write down that all parts are there, and what made them."""
        write_json(self.folder / RECORD, self.parts.made_by)


def make_features(maker: PartMaker, *, rank: int = 0, ranks: int = 1, threads: int = 1, progress: bool = True) -> None:
    """Make this process's parts, every `ranks`-th; those that are there and whole stay.

    Args:
        threads: that read and decode media.

    Raises: as `PartMaker`.
    """
    missing = maker.missing(rank=rank, ranks=ranks)
    total, started = sum(len(maker.rows(number)) for number in missing), time.monotonic()
    with ThreadPoolExecutor(threads) as pool:
        for number in track(missing, "features (parts)", len(missing), enabled=progress):
            maker.make(number, pool)
            if number == missing[0]:
                rate = len(maker.rows(number)) / max(time.monotonic() - started, 1e-9)
                log.info("features: %.1f queries a second, about %.1f h for %d", rate, total / rate / 3600, total)


class Features:
    """Features of all rows, memory-mapped: what was read is let go of, so that memory does not grow with the rows.

    `dim` is their width D, of which the first `picture_dim` are of pictures; hashes, media, texts (N,) uint64:
    perceptual hash of the first picture, digests of all media (0 where there are none) and of what is asked;
    `left_out`: row -> why it has none.

    Raises:
        DataError: parts that are missing or damaged, or of other rows.
    """

    def __init__(self, folder: Path, queries: Queries) -> None:
        self.folder, self._num_rows = folder, len(queries)
        self.made_by = _record(folder)
        if self.made_by["rows"] != queries.digest:
            raise DataError(
                "these are features of other rows",
                where=folder, given=f"of {self.made_by['rows']}", expected=f"of {queries.digest}, {len(queries)} rows",
                fix="make them again: stage=query_features",
            )  # fmt: skip
        of, dim = self.made_by["of"], self.made_by["dim"]
        self.dim = 2 * dim if of == "both" else dim
        self.picture_dim = 0 if of == "text" else dim
        self._rows = _RowsFile(folder, len(queries), self.dim)
        self.hashes, self.media, self.texts = (np.zeros(len(queries), np.uint64) for _ in range(3))
        self.left_out: dict[int, str] = {}
        self.texts_cut = 0
        parts = Parts(folder, self.made_by, what="features")
        for number in range(_num_parts(len(queries))):
            rows = _rows_of(number, len(queries))
            self._add(rows, _checked(self._rows, parts, number, rows))

    def _add(self, rows: range, note: Mapping[str, Any]) -> None:
        for name in ("hashes", "media", "texts"):
            getattr(self, name)[rows.start : rows.stop] = _numbers(note[name])
        self.left_out |= {rows.start + int(row): str(reason) for row, reason in note["left_out"].items()}
        self.texts_cut += note["texts_cut"]

    def __len__(self) -> int:
        return self._num_rows

    def take(self, rows: np.ndarray, columns: slice = slice(None)) -> Tensor:
        """Some rows (n, D) as float32, in this order, or some of their columns."""
        return torch.from_numpy(self._rows.take(rows, columns).astype(np.float32))

    def chunks(self, rows: np.ndarray, size: int = 1 << 16) -> Iterator[Tensor]:
        """The same in pieces of at most `size` rows."""
        for start in range(0, len(rows), size):
            yield self.take(rows[start : start + size])


class _RowsFile:
    """The file of rows (N, D) float16, mapped; a file that is shorter lacks its last rows."""

    def __init__(self, folder: Path, rows: int, width: int) -> None:
        self.path, self._touched, self._map = folder / ROWS, 0, None
        self._rows = np.empty((0, width), np.float16)
        if self.path.is_file() and self.path.stat().st_size:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            whole = min(rows, len(self._map) // (width * _BYTES))
            self._rows = np.frombuffer(self._map, np.float16, whole * width).reshape(whole, width)

    def take(self, rows: np.ndarray, columns: slice) -> np.ndarray:
        found = self._rows[rows, columns]
        self._let_go(len(rows) * _AROUND)
        return found

    def checksum(self, rows: range) -> str:
        """CRC-32 of some rows; nothing where they are not there."""
        found = self._rows[rows.start : rows.stop]
        checksum = f"{zlib.crc32(found.data):08x}" if len(found) == len(rows) else ""
        self._let_go(found.nbytes)
        return checksum

    def _let_go(self, touched: int) -> None:
        """Unmap what was read, once it is much: it stays in the system's cache, but is this process's no more."""
        self._touched += touched
        if self._map is not None and self._touched > _MOST_MAPPED:
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0


def _write_rows(folder: Path, offset: int, content: bytes) -> None:
    """Fill in rows where they belong; they are on the disk when this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / ROWS, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        while content:
            number = os.pwrite(file, content, offset)
            content, offset = content[number:], offset + number
        os.fsync(file)
    finally:
        os.close(file)


def _whole(there: _RowsFile, parts: Parts, number: int, rows: range) -> bool:
    """Whether a part is there, and as it was written; one that is not is made again, with a warning."""
    if parts.read(_name(number)) is None:
        return False
    try:
        _checked(there, parts, number, rows)
    except DataError as error:
        log.warning("%s: made again", error.problem)
        return False
    return True


def _checked(there: _RowsFile, parts: Parts, number: int, rows: range) -> dict[str, Any]:
    """The note of a part; raises DataError where its rows are not what was written."""
    note = parts.read(_name(number))
    if note is None:
        raise _damaged(there.path.with_name(f"{_name(number)}.json"), "no such part")
    if there.checksum(rows) != note["features_crc32"]:
        raise _damaged(there.path, f"another checksum of part {number}")
    return note


def _damaged(path: Path, given: str) -> DataError:
    return DataError(
        f"features are damaged: {path.name}", where=path, given=given,
        fix=remedy(path, "run stage=query_features again: only what is damaged is made anew"),
    )  # fmt: skip


def _made_by(queries: Queries, encoder: Encoder, settings: FeatureSettings) -> dict[str, Any]:
    return {"rows": queries.digest, **encoder.facts(), "of": settings.of, "frames": settings.frames,
            "rows_per_part": ROWS_PER_PART}  # fmt: skip


def _record(folder: Path) -> dict[str, Any]:
    try:
        found: Mapping[str, Any] = json.loads(read_regular(folder / RECORD, what="record of features"))
        return {**found, "rows": found["rows"], "of": found["of"], "dim": int(found["dim"])}
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(folder / RECORD, f"{type(error).__name__}: {error}") from error


def _check_room(folder: Path, rows: int, width: int) -> None:
    needed = _BYTES * width * rows
    there = (folder / ROWS).stat().st_blocks * 512 if (folder / ROWS).is_file() else 0  # it may have holes
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    log.info("features of %d queries, %d numbers each: %s on disk, %s free", rows, width, format_bytes(needed),
             format_bytes(free))  # fmt: skip
    if needed - there > free:
        raise UserError(
            "features do not fit on the disk",
            where=folder, given=f"{format_bytes(free)} free", expected=format_bytes(needed - there),
            fix="choose another disk: paths.artifacts=DIR, or encode pictures alone: stages.query_features.of=image",
        )  # fmt: skip


def _num_parts(rows: int) -> int:
    return -(-rows // ROWS_PER_PART)


def _rows_of(number: int, rows: int) -> range:
    return range(number * ROWS_PER_PART, min((number + 1) * ROWS_PER_PART, rows))


def _name(number: int) -> str:
    return f"part-{number:05d}"


def _hex(numbers: Sequence[int]) -> str:
    return "".join(f"{number:016x}" for number in numbers)


def _numbers(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), dtype=">u8").astype(np.uint64)
