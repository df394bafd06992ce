"""Groups to WebDataset tars, one finished shard after another, so that an interrupted run goes on where it stopped.

A shard is written as `NAME.part`, read back, renamed, and gets a done record with its rows of the index. The tars are
written with webdataset's `TarWriter`, one member at a time: its `ShardWriter` would sort a sample's members, and the
record has to come first. The same groups give the same bytes.

A done record is no `mmrlhf.parts`: it stands for the tar beside it, and a shard is what its place in the one order of
groups makes it; whether the input is still the same is the note's to say, which the caller compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq
from webdataset.writer import TarWriter

from mmrlhf.errors import ConfigError, DataError
from mmrlhf.files import publish_file, written
from mmrlhf.records.members import group_to_sample
from mmrlhf.shards.manifest import write_index
from mmrlhf.shards.scan import SCHEMA, ShardScan, scan_shard
from mmrlhf.types import PreferenceGroup

_NAME, _NAMES = "shard-{:05d}.tar", "shard-[0-9]*.tar"
_DONE = ".done.parquet"


def write_shards(
    groups: Iterable[PreferenceGroup], out: Path, *, max_groups_per_shard: int = 1000, max_megabytes: float = 1024
) -> None:
    """Write groups as shards, with index and manifest, into an empty folder.

    Raises:
        DataError: a key that occurs twice, or a folder that already holds shards.
    """
    sink = ShardSink(out, max_groups_per_shard=max_groups_per_shard, max_megabytes=max_megabytes)
    if sink.notes:
        raise DataError("folder already holds finished shards", where=out, fix="give an empty folder")
    with closing(sink):
        for group in groups:
            sink.add(group)
            if sink.full:
                sink.close_shard()
        sink.finish()


class ShardSink:
    """Writes shards into a folder and remembers which are finished.

    `notes` are what `close_shard` was given for every finished shard, also by an earlier process.

    Args:
        out: the folder; made if needed.
        max_groups_per_shard, max_megabytes: a shard is `full` when it reaches either.
    """

    def __init__(self, out: Path, *, max_groups_per_shard: int = 1000, max_megabytes: float = 1024) -> None:
        if max_groups_per_shard < 1 or max_megabytes <= 0:
            raise ConfigError(
                "a shard must hold something",
                given=f"max_groups_per_shard={max_groups_per_shard}, max_megabytes={max_megabytes}",
                expected="max_groups_per_shard >= 1 and max_megabytes > 0",
            )
        self._out, self._max_groups, self._max_bytes = out, max_groups_per_shard, max_megabytes * 1e6
        out.mkdir(parents=True, exist_ok=True)
        self._scans: list[ShardScan] = []
        self.notes: list[dict[str, Any]] = []
        self._load_finished()
        self._keys = {key for scan in self._scans for key in scan.rows.column("key").to_pylist()}
        self._stream: BinaryIO | None = None
        self._writer: TarWriter | None = None
        self._groups = self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether the open shard has reached a limit; the caller then closes it."""
        return self._groups >= self._max_groups or self._bytes >= self._max_bytes

    @property
    def pending(self) -> int:
        """Groups in the open shard."""
        return self._groups

    def add(self, group: PreferenceGroup) -> None:
        """Append one group to the open shard.

        Raises:
            DataError: its key has been written before.
        """
        if group.key in self._keys:
            raise DataError("key occurs twice", where=group.key, expected="every key once in a set of shards")
        self._keys.add(group.key)
        writer = self._writer or self._open_writer()
        sample = group_to_sample(group)
        for name, data in sample.items():
            if name != "__key__":
                self._bytes += writer.write({"__key__": group.key, name: data})
        self._groups += 1

    def close_shard(self, note: Mapping[str, Any] | None = None) -> None:
        """Finish the open shard: read it back, give it its name, and write its done record with the note."""
        if self._writer is None or self._stream is None:
            raise ValueError("no shard is open")
        name = _NAME.format(len(self._scans))
        part = self._out / f"{name}.part"
        self._writer.close()
        self._stream.close()
        self._writer = self._stream = None
        self._groups = self._bytes = 0
        publish_file(part, self._out / name)
        scan = scan_shard(self._out / name)
        self._record(scan, dict(note or {}))

    def finish(self) -> None:
        """Close what is open and write index and manifest. Done records stay until `clear_records`."""
        if self._writer is not None:
            self.close_shard()
        if not self._scans:
            raise DataError("there are no groups to write", where=self._out)
        write_index(self._out, self._scans)
        for path in self._out.glob("*.part"):
            path.unlink()

    def clear_records(self) -> None:
        """Remove the done records, once nothing needs to be resumed any more."""
        for path in self._out.glob(f"*{_DONE}"):
            path.unlink()

    def start_over(self) -> None:
        """Forget all shards, for when their input has changed: also one that a kill left without its done record."""
        self.close()
        self.clear_records()
        for path in self._out.glob(_NAMES):
            path.unlink()
        self._scans, self.notes, self._keys = [], [], set()

    def close(self) -> None:
        """Let go of the open shard, if any, without finishing it; a later run writes it again."""
        if self._writer is not None and self._stream is not None:
            self._writer.close()
            self._stream.close()
        self._writer = self._stream = None
        self._groups = self._bytes = 0

    def _open_writer(self) -> TarWriter:
        self._stream = (self._out / f"{_NAME.format(len(self._scans))}.part").open("wb")
        # A fixed time and no encoding: bytes in, bytes out, the same on every machine.
        self._writer = TarWriter(self._stream, encoder=False, compress=False, mtime=0)
        return self._writer

    def _record(self, scan: ShardScan, note: dict[str, Any]) -> None:
        facts = json.dumps({"name": scan.name, "bytes": scan.bytes, "sha256": scan.sha256, "note": note})
        with written(self._out / f"{scan.name}{_DONE}") as part:
            pq.write_table(scan.rows.replace_schema_metadata({"scan": facts}), part)
        self._scans.append(scan)
        self.notes.append(note)

    def _load_finished(self) -> None:
        while (path := self._out / f"{_NAME.format(len(self._scans))}{_DONE}").is_file():
            rows = pq.read_table(path)
            facts = json.loads(rows.schema.metadata[b"scan"])
            shard = self._out / facts["name"]
            if not shard.is_file() or shard.stat().st_size != facts["bytes"]:
                break
            self.notes.append(facts.pop("note"))
            self._scans.append(ShardScan(rows=rows.cast(SCHEMA), **facts))
