"""The index of a folder of shards: every sample's byte ranges and size, and the start-up checks.

`index.parquet` holds one row per sample, `manifest.json` the shards with size, count and SHA-256. The index stays in
columns in memory, so that millions of samples are cheap; an `IndexEntry` is made when it is asked for.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.files import is_remote
from mmrlhf.parts import remedy
from mmrlhf.records.members import group_from_members
from mmrlhf.shards.byte_ranges import ShardFiles, open_in
from mmrlhf.shards.entries import Entries
from mmrlhf.shards.manifest import Shard, check_shards, read_index, set_of_shard
from mmrlhf.shards.remote import RemoteShards
from mmrlhf.types import PreferenceGroup

log = logging.getLogger(__name__)

Split = Literal["train", "heldout", "all"]
Modality = Literal["text", "image", "images", "video"]


def load_shards(folder: Path | str) -> Index:
    """Load a packed set, here or at an address, as a sequence of its groups: `shards[0]`, `for group in shards`.

    Raises as `Index.load`.
    """
    return Index.load(folder)


class Index:
    """A loaded index; `Index.load` makes one. It pickles as its folder and digest, so workers get it cheaply.

    `digest` identifies the content, `shards` lists the files, `entries[i]` describes sample i and `read(i)` reads it.
    `remote` is where the shards come from if they lie at an address.
    """

    def __init__(
        self,
        folder: Path | str,
        shards: tuple[Shard, ...],
        digest: str,
        table: pa.Table,
        remote: RemoteShards | None = None,
    ) -> None:
        self.folder, self.shards, self.digest = folder, shards, digest
        self.entries = Entries(table)
        self._table = table
        self.remote = remote
        self._files = ShardFiles(remote.open, max_open=0) if remote else ShardFiles(partial(open_in, Path(folder)))

    @classmethod
    def load(cls, folder: Path | str) -> Index:
        """Load the index of a folder and check that every shard is there in full; fast, no shard is read.

        Of a remote folder (https, s3, gs) the index is fetched, and each shard when it is first read, with its check.

        Raises:
            DataError: no index, another schema, a shard that is missing, empty or of another size or count.
            HubError: a remote folder that cannot be reached.
        """
        if isinstance(folder, str) and is_remote(folder):
            remote = RemoteShards(folder)
            shards, digest, table = read_index(remote.fetch_index())
            remote.add(shards)
            return cls(folder, shards, digest, table, remote)
        folder = Path(folder)
        shards, digest, table = read_index(folder)
        check_shards(folder, shards, table)
        return cls(folder, shards, digest, table)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, i: int) -> PreferenceGroup:
        return self.read(range(len(self))[i])

    def __iter__(self) -> Iterator[PreferenceGroup]:
        return (self.read(i) for i in range(len(self)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.digest)

    def column(self, name: str) -> np.ndarray:
        """Return one column of numbers or text (N,) in index order, without making entries."""
        return self._table.column(name).to_numpy()

    def modality(self) -> np.ndarray:
        """Return each sample's modality (N,): text, image (one), images (several) or video (frames count as one)."""
        images = self.column("num_images")
        return np.select(
            [self.column("num_frames") > 0, images == 0, images == 1], ["video", "text", "image"], "images"
        )

    def set_names(self) -> np.ndarray:
        """Return the name of each sample's set (N,) in a mixture; empty text where the shards are no mixture."""
        numbers, shards = self.shard_numbers()
        return np.array([set_of_shard(shard) for shard in shards], dtype=object)[numbers]

    def shard_numbers(self) -> tuple[np.ndarray, list[str]]:
        """Return each sample's shard as a number (N,), and the names of the shards by their numbers."""
        shards = self._table.column("shard").combine_chunks().dictionary_encode()
        return shards.indices.to_numpy(), shards.dictionary.to_pylist()

    def read(self, i: int, *, media: bool = True) -> PreferenceGroup:
        """Read sample i from its shard, or its text alone: then its media have no data.

        Raises:
            DataError: bytes that are missing or fail their checksum, naming shard, key and member.
        """
        key, shard, members = self.entries.place(int(i))
        found: dict[str, bytes | None] = dict.fromkeys(members)
        for name, (offset, size, crc32) in members.items() if media else [("json", members["json"])]:
            data = self._files.read(shard, offset, size)
            if len(data) != size or zlib.crc32(data) != crc32:
                raise DataError(
                    "member is damaged",
                    where=f"{self.folder}/{shard}:{key}:{name}",
                    given=f"{len(data)} of {size} bytes, checksum {zlib.crc32(data):08x}",
                    expected=f"checksum {crc32:08x}",
                    fix=f"copy or fetch the shard again, or {remedy(self.folder, 'pack it again')}",
                )
            found[name] = data
        # in a mixture the record has its own key, without the name of the set
        prefix = f"{set_of_shard(shard)}/" if set_of_shard(shard) else ""
        text = found.pop("json")
        assert text is not None
        group = group_from_members(text, found, shard=shard, key=key.removeprefix(prefix))
        return replace(group, key=key) if prefix else group

    def split(self, name: Split, holdout: float, limit: int | None = None) -> np.ndarray:
        """Return the rows (n,) int64, ascending, of one side of a split by key.

        Whether a group is held out depends on its key alone (or on what its twins share), so it stays where it is
        when data are added, removed or packed again. Only where a side would stay empty, as it may with a handful of
        groups, one key (with its twins) changes sides, with a warning.

        Args:
            name: "train", "heldout" or "all".
            holdout: share of the keys on the held-out side.
            limit: take at most this many (see `take`).
        """
        if not 0 <= holdout <= 1:
            raise ConfigError("holdout is a share", given=holdout, expected="0 <= holdout <= 1")
        place = self.column("split_hash")
        border = _border(place, holdout)
        sides = {"train": place >= border, "heldout": place < border, "all": np.ones(len(place), dtype=bool)}
        if name not in sides:
            raise ConfigError("unknown split", given=name, expected="train, heldout or all")
        return self.take(np.flatnonzero(sides[name]).astype(np.int64), limit)

    def take(self, rows: np.ndarray, limit: int | None) -> np.ndarray:
        """Keep at most `limit` of some rows, spread like a random choice: a smaller limit keeps a subset."""
        if limit is None or len(rows) <= limit:
            return rows
        return np.sort(rows[np.argsort(self.column("split_hash")[rows], kind="stable")[:limit]])

    def verify_shard(self, shard: Shard) -> None:
        """Read a whole shard and compare its SHA-256 with the manifest.

        Raises:
            DataError: they differ.
        """
        with os.fdopen(self._files.open_shard(shard.name), "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != shard.sha256:
            raise DataError(
                "shard has other bytes than when it was written",
                where=f"{self.folder}/{shard.name}", given=f"sha256 {found}", expected=shard.sha256,
                fix=f"copy or fetch the shard again, or {remedy(self.folder, 'pack it again')}",
            )  # fmt: skip

    def verify(self) -> None:
        """Read every shard in full and compare it with the manifest (to show progress, loop over `verify_shard`)."""
        for shard in self.shards:
            self.verify_shard(shard)


def _border(place: np.ndarray, holdout: float) -> float:
    """Where to cut the keys' places in [0, 1): at the wanted share, or next to it if a side would be empty."""
    if not 0 < holdout < 1 or len(place) < 2 or place.min() < holdout <= place.max():
        return holdout
    known = np.unique(place)
    if len(known) < 2:
        return holdout
    side, border = ("held-out", known[1]) if known[0] >= holdout else ("training", known[-1])
    _warn_once(f"holdout={holdout} of {len(place)} queries leaves the {side} side empty: one query goes there")
    return float(border)


@lru_cache(maxsize=64)
def _warn_once(message: str) -> None:
    """Log a warning once in a process: every stage cuts the same data, most of them twice."""
    log.warning(message)


def _reopen(folder: Path | str, digest: str) -> Index:
    index = Index.load(folder)
    if index.digest != digest:
        raise DataError("shards changed while they were in use", where=folder, given=index.digest, expected=digest)
    return index
