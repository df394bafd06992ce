"""A packed set against what its manifest and index say, byte by byte."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from mmrlhf.errors import DataError
from mmrlhf.media.images import decode_image
from mmrlhf.media.video import decode_video
from mmrlhf.records.members import group_from_members
from mmrlhf.shards.manifest import Shard, set_of_shard
from mmrlhf.shards.scan import scan_shard
from mmrlhf.types import Media

_SHARD_PROBLEM = "shard has other bytes than when it was written"


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was written: what, and where (shard, or shard:key:member)."""

    problem: str
    where: str


def shard_rows(table: pa.Table, shard: str) -> pa.Table:
    """The rows of an index that belong to one shard, with the keys and the shard's name that the shard itself has."""
    rows = table.filter(pc.equal(table.column("shard"), shard))  # pyright: ignore[reportAttributeAccessIssue]
    own = set_of_shard(shard)
    if not own:
        return rows
    keys = [key.removeprefix(f"{own}/") for key in rows.column("key").to_pylist()]
    columns = {"key": keys, "shard": [Path(shard).name] * len(rows)}
    for name, values in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(values, pa.string()))
    return rows


def verify_shard(folder: Path, shard: Shard, rows: pa.Table, *, media: bool = False) -> list[Problem]:
    """Check one shard: size, SHA-256, the CRC-32 of every member, and every record's schema.

    Args:
        folder: where the shard lies.
        shard: what the manifest says about it.
        rows: its rows of the index.
        media: also decode every image and video.

    Returns:
        Everything that differs; empty if nothing does.
    """
    path = folder / shard.name
    if not path.is_file():
        return [Problem("shard is missing", shard.name)]
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        problems = _damaged_members(stream, rows)
    if sha256 != shard.sha256 or path.stat().st_size != shard.bytes:
        return [Problem(f"{_SHARD_PROBLEM} ({path.stat().st_size} of {shard.bytes} bytes)", shard.name), *problems]
    try:
        scanned = scan_shard(path).rows
    except DataError as error:
        return [Problem(error.problem, str(error.where)), *problems]
    if not scanned.equals(rows.cast(scanned.schema)) or len(rows) != shard.count:
        problems.append(Problem("index does not describe the shard", shard.name))
    return problems + (_undecodable(path, rows) if media else [])


def _damaged_members(stream: BinaryIO, rows: pa.Table) -> list[Problem]:
    found = []
    for row in rows.to_pylist():
        columns = (row[name] for name in ("member_names", "member_offsets", "member_sizes", "member_crc32"))
        for name, offset, size, crc32 in zip(*columns, strict=True):
            stream.seek(offset)
            if zlib.crc32(stream.read(size)) != crc32:
                found.append(Problem("member has another checksum", f"{row['shard']}:{row['key']}:{name}"))
    return found


def _undecodable(path: Path, rows: pa.Table) -> list[Problem]:
    found = []
    with path.open("rb") as stream:
        for row in rows.to_pylist():
            members = {}
            for name, offset, size in zip(row["member_names"], row["member_offsets"], row["member_sizes"], strict=True):
                stream.seek(offset)
                members[name] = stream.read(size)
            group = group_from_members(members.pop("json"), members, shard=row["shard"], key=row["key"])
            for item in (*group.media, *(media for response in group.responses for media in response.media)):
                try:
                    _decode(item, f"{row['shard']}:{row['key']}:{item.names[0]}")
                except DataError as error:
                    found.append(Problem(f"{error.problem} ({error.given})", str(error.where)))
    return found


def _decode(media: Media, where: str) -> None:
    if media.kind == "video":
        decode_video(media.data[0], num_frames=8, where=where)
        return
    for data in media.data:
        decode_image(data, where=where)
