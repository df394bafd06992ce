"""Features of queries: float16 parts with checksums that are memory-mapped, made by one process or several, resumable.

A part is `part-NNNNN.npy` (n, D), unit rows or zeros, and `part-NNNNN.json` with its checksum, the pictures' perceptual
hashes, digests of the media, and the rows that have no features with the reason. The JSON comes last, so a part without
it is made again.
"""

from __future__ import annotations

import json
import logging
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
from mmrlhf.curation.encoding import Encoded, FeatureSettings, encode_rows
from mmrlhf.curation.query_rows import Queries
from mmrlhf.errors import DataError, UserError
from mmrlhf.files import read_regular, write_json, written
from mmrlhf.models.hub import format_bytes
from mmrlhf.parts import Parts
from mmrlhf.terminal.progress import track

log = logging.getLogger(__name__)

RECORD = "features.json"
ROWS_PER_PART = 4096


def make_features(
    folder: Path,
    queries: Queries,
    encoder: Encoder,
    settings: FeatureSettings,
    *,
    rank: int = 0,
    ranks: int = 1,
    threads: int = 1,
    progress: bool = True,
) -> None:
    """Make this process's parts, every `ranks`-th; those that are there and whole stay.

    Args:
        threads: that read and decode media.

    Raises:
        UserError: the features do not fit on the disk.
        DataError: the folder holds parts of other rows or of another encoder; names what differs.
    """
    parts = Parts(folder, _made_by(queries, encoder, settings), what="features")
    wanted = range(rank, _num_parts(len(queries)), ranks)
    missing = [number for number in wanted if not _whole(folder, parts, number)]
    width = encoder.dim * (2 if settings.of == "both" else 1)
    _check_room(folder, 2 * width * ROWS_PER_PART * _num_parts(len(queries)), len(queries), width)
    if len(missing) < len(wanted):
        log.info("%d of %d parts of features were made before", len(wanted) - len(missing), len(wanted))
    rows = sum(len(_rows_of(number, len(queries))) for number in missing)
    with ThreadPoolExecutor(threads) as pool:
        started = time.monotonic()
        for number in track(missing, "features (parts)", len(missing), enabled=progress):
            found = encode_rows(queries, _rows_of(number, len(queries)), encoder, settings, pool)
            _write_part(folder, parts, number, found)
            if number == missing[0]:
                rate = len(found.features) / max(time.monotonic() - started, 1e-9)
                log.info("features: %.1f queries a second, about %.1f h for %d", rate, rows / rate / 3600, rows)


def finish_features(folder: Path, queries: Queries, encoder: Encoder, settings: FeatureSettings) -> None:
    """Write down that all parts are there, and what made them."""
    write_json(folder / RECORD, _made_by(queries, encoder, settings))


class Features:
    """Features of all rows, memory-mapped.

    `dim` is their width D, of which the first `picture_dim` are of pictures; hashes, media (N,) uint64: perceptual
    hash of the first picture and digest of all media, 0 where there is none; `left_out`: row -> why it has none.

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
        parts = Parts(folder, self.made_by, what="features")
        self._parts = [_open_part(folder, parts, number) for number in range(_num_parts(len(queries)))]
        notes = [parts.read(_name(number)) or {} for number in range(len(self._parts))]
        self.hashes, self.media = (
            np.concatenate([_numbers(note[name]) for note in notes]) for name in ("hashes", "media")
        )
        self.left_out = {
            number * ROWS_PER_PART + int(row): str(reason)
            for number, note in enumerate(notes)
            for row, reason in note["left_out"].items()
        }
        self.texts_cut = sum(note["texts_cut"] for note in notes)

    def __len__(self) -> int:
        return self._num_rows

    def take(self, rows: np.ndarray) -> Tensor:
        """Some rows (n, D) as float32, in this order."""
        found = np.empty((len(rows), self.dim), np.float32)
        part = np.asarray(rows) // ROWS_PER_PART
        for number in np.unique(part):
            here = part == number
            found[here] = self._parts[number][np.asarray(rows)[here] - number * ROWS_PER_PART]
        return torch.from_numpy(found)

    def chunks(self, rows: np.ndarray, size: int = 1 << 16) -> Iterator[Tensor]:
        """The same in pieces of at most `size` rows."""
        for start in range(0, len(rows), size):
            yield self.take(rows[start : start + size])


def _write_part(folder: Path, parts: Parts, number: int, found: Encoded) -> None:
    path = folder / f"{_name(number)}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with written(path) as part, part.open("wb") as file:
        np.save(file, found.features, allow_pickle=False)
    parts.write(
        _name(number),
        {
            "features_crc32": f"{zlib.crc32(found.features.tobytes()):08x}",
            "hashes": _hex(found.hashes),
            "media": _hex(found.media),
            "left_out": {str(row): reason for row, reason in found.left_out.items()},
            "texts_cut": found.texts_cut,
        },
    )


def _whole(folder: Path, parts: Parts, number: int) -> bool:
    """Whether a part is there, and as it was written; one that is not is made again, with a warning."""
    if parts.read(_name(number)) is None:
        return False
    try:
        _open_part(folder, parts, number)
    except DataError as error:
        log.warning("%s: made again", error.problem)
        return False
    return True


def _open_part(folder: Path, parts: Parts, number: int) -> np.ndarray:
    path, note = folder / f"{_name(number)}.npy", parts.read(_name(number))
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        fits = note is not None and f"{zlib.crc32(np.ascontiguousarray(found).tobytes()):08x}" == note["features_crc32"]
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not fits:
        raise _damaged(path, "no checksum" if note is None else "another checksum")
    return found


def _damaged(path: Path, given: str) -> DataError:
    return DataError(
        f"features are damaged: {path.name}", where=path, given=given,
        fix="delete this file and run stage=query_features again: only this part is made anew",
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


def _check_room(folder: Path, needed: int, rows: int, width: int) -> None:
    there = sum(path.stat().st_size for path in folder.glob("part-*.npy"))
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
