"""One pass over a tar shard: where every member lies, what every sample is, and every way a tar can be damaged.

webdataset reads damaged shards without a word: a cut tar ends early, a missing member gives a partial sample, members
that are not adjacent give halves. Here each of these is an error that names shard, key and member.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from webdataset.tariterators import base_plus_ext

from mmrlhf.errors import DataError
from mmrlhf.files import LARGEST_FILE
from mmrlhf.media.images import image_size
from mmrlhf.media.video import packed_record, probe_video
from mmrlhf.records.members import group_from_members
from mmrlhf.records.tars import tar_members
from mmrlhf.types import Media, PreferenceGroup

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "shard": pa.string(),
        "member_names": pa.list_(pa.string()),
        "member_offsets": pa.list_(pa.int64()),
        "member_sizes": pa.list_(pa.int64()),
        "member_crc32": pa.list_(pa.uint32()),
        "num_responses": pa.int32(),
        "num_pairs": pa.int32(),
        "category": pa.string(),
        "num_images": pa.int32(),
        "image_sizes": pa.list_(pa.int32()),
        "num_frames": pa.int32(),
        "duration": pa.float64(),
        "video_size": pa.list_(pa.int32()),
        "text_chars": pa.int64(),
        "critique_chars": pa.int64(),
        "split_hash": pa.float64(),
        "rank_range": pa.int32(),
        "form": pa.string(),
        "more_clips": pa.list_(pa.float64()),
        "own_media": pa.list_(pa.int32()),
    }
)
# Columns that are not written where no sample of a set has anything but this in them.
DEFAULTS: Mapping[str, Any] = {"form": "", "more_clips": [], "own_media": []}
_BLOCK = tarfile.BLOCKSIZE
_WEBDATASET_META = re.compile(r"__[^/]*__($|/)")
# what macOS puts beside every file
_OF_A_MAC = re.compile(r"(?:\./)?__MACOSX/|(?:.*/)?\._")
_REPAIR = "copy or fetch the shard again, or pack it again"


@dataclass(frozen=True)
class ShardScan:
    """What one pass over a shard found: its rows of the index (`SCHEMA`), in order, and the file's size and SHA-256."""

    name: str
    bytes: int
    sha256: str
    rows: pa.Table


@dataclass
class _Sample:
    key: str
    data: dict[str, bytes] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)


def scan_shard(path: Path) -> ShardScan:
    """Read a whole shard and describe every sample in it.

    Raises:
        DataError: an empty or cut file, a garbled header, a member or record missing, duplicate, not adjacent to the
            rest of its sample, or under a key with a dot. Each names shard, key and member.
    """
    size = path.stat().st_size if path.is_file() else 0
    if not size:
        raise DataError("shard is empty", where=path, given="0 bytes", fix=_REPAIR)
    with path.open("rb") as stream:
        rows = pa.Table.from_pylist([_row(path.name, sample) for sample in _samples(path, stream)], schema=SCHEMA)
        stream.seek(0)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return ShardScan(path.name, size, sha256, rows)


def split_hash(key: str) -> float:
    """Hash a key to a number in [0, 1), uniformly; it decides on which side of a split the group lies."""
    return (int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 11) / 2**53


def _samples(path: Path, stream: BinaryIO) -> Iterator[_Sample]:
    current: _Sample | None = None
    finished: set[str] = set()
    for key, suffix, offset, data in _members(path, stream):
        if current is None or key != current.key:
            if current is not None:
                finished.add(current.key)
                yield current
            if key in finished:
                raise DataError(
                    "sample comes up twice in a shard",
                    where=f"{path.name}:{key}:{suffix}",
                    given="members of other samples in between",
                    expected="all members of a sample next to each other, and every key once",
                    fix="write the tar sorted by name (tar --sort=name), with a key of its own for every sample",
                )
            current = _Sample(key)
        if suffix in current.data:
            raise DataError(
                "member comes up twice in a sample",
                where=f"{path.name}:{key}:{suffix}", expected="every key and suffix once",
            )  # fmt: skip
        current.data[suffix], current.offsets[suffix] = data, offset
    if current is not None:
        yield current


def _members(path: Path, stream: BinaryIO) -> Iterator[tuple[str, str, int, bytes]]:
    """Yield (key, suffix, offset, bytes) of every file in the tar, and check that the tar ends where it should."""
    end = 0
    try:
        for info in tar_members(stream):
            end = info.offset_data + -(-info.size // _BLOCK) * _BLOCK * info.isreg()
            if info.isdir() or _WEBDATASET_META.match(info.name):
                continue
            if info.issparse() or info.size > LARGEST_FILE:
                raise DataError(
                    "shard has a member that cannot be read in place",
                    where=f"{path.name}:{info.name}",
                    given="a sparse file" if info.issparse() else f"{info.size} bytes",
                    expected=f"plain files of at most {LARGEST_FILE} bytes",
                    fix="write the tar without --sparse",
                )
            key, suffix = (None, None) if _OF_A_MAC.match(info.name) else base_plus_ext(info.name)
            if key is None or suffix is None or not info.isreg():
                logger.warning("%s: %s is no member of a sample, webdataset ignores it too", path.name, info.name)
                continue
            if any("\ud800" <= sign <= "\udfff" for sign in info.name):
                raise DataError(
                    "a member's name is not UTF-8", where=f"{path.name}:{info.name}",
                    fix="write the tar again, with names in UTF-8",
                )  # fmt: skip
            yield key, suffix.lower(), info.offset_data, _bytes_of(stream, info)
    except tarfile.TarError as error:
        raise DataError("shard is cut off or damaged", where=path, given=f"{error}", fix=_REPAIR) from error
    stream.seek(end)
    block = stream.read(_BLOCK)
    if len(block) < _BLOCK:
        raise DataError(
            "shard is cut off", where=path, given=f"the file ends at byte {end + len(block)}, between two members",
            expected="a tar that ends with an empty block", fix=_REPAIR,
        )  # fmt: skip
    if any(block):
        raise DataError("shard has a garbled header", where=f"{path}: byte {end}", fix=_REPAIR)


def _bytes_of(stream: BinaryIO, info: tarfile.TarInfo) -> bytes:
    stream.seek(info.offset_data)
    data = stream.read(info.size)
    if len(data) < info.size:
        raise tarfile.ReadError(f"{info.name} has {len(data)} of {info.size} bytes")
    return data


def _row(shard: str, sample: _Sample) -> dict[str, Any]:
    """Describe one sample as a row of the index (`SCHEMA`)."""
    group = _group(shard, sample)
    everything = [*group.media, *(media for response in group.responses for media in response.media)]
    images = [media for media in everything if media.kind == "image"]
    videos = [media for media in everything if media.kind != "image"]
    sizes = [_image_size(media, group) for media in images]
    clips = [_video_facts(media, group) for media in videos]
    num_frames, duration, width, height = clips[0] if clips else (0, 0.0, 0, 0)
    names = list(sample.data)
    return {
        "key": group.key,
        "shard": shard,
        "member_names": names,
        "member_offsets": [sample.offsets[name] for name in names],
        "member_sizes": [len(sample.data[name]) for name in names],
        "member_crc32": [zlib.crc32(sample.data[name]) for name in names],
        "num_responses": len(group.responses),
        "num_pairs": len(group.ranked_pairs()),
        "category": group.category,
        "num_images": len(images),
        "image_sizes": [side for size in sizes for side in size],
        "num_frames": num_frames,
        "duration": duration,
        "video_size": [width, height] if videos else [],
        "text_chars": group.prompt.num_chars + sum(len(response.text) for response in group.responses),
        "critique_chars": sum(max(map(len, response.critiques.values()), default=0) for response in group.responses),
        "split_hash": split_hash(str(group.meta.get("twin") or group.key)),
        "rank_range": _rank_range(group),
        "form": group.prompt.form,
        "more_clips": [float(fact) for clip in clips[1:] for fact in clip],
        "own_media": _own_media(group) if group.has_own_media else [],
    }


def _own_media(group: PreferenceGroup) -> list[int]:
    """How many pictures and how many videos each response has of its own, one response after another."""
    kinds = [[media.kind == "image" for media in response.media] for response in group.responses]
    return [count for each in kinds for count in (sum(each), len(each) - sum(each))]


def _rank_range(group: PreferenceGroup) -> int:
    """Worst rank minus best rank; 0 where nothing is ranked."""
    ranks = [response.rank for response in group.responses if response.rank is not None]
    return max(ranks) - min(ranks) if ranks else 0


def _group(shard: str, sample: _Sample) -> PreferenceGroup:
    dotted = sorted(suffix for suffix in sample.data if suffix.endswith(".json"))
    if dotted:
        raise DataError(
            "key contains a dot",
            where=f"{shard}:{sample.key}.{dotted[0]}",
            given="webdataset would merge such samples, because it cuts a key at its first dot",
            expected="keys without dots",
            fix="rename the members in the tar",
        )
    if "json" not in sample.data:
        raise DataError(
            "sample lacks a member", where=f"{shard}:{sample.key}:json", given=f"members {sorted(sample.data)}",
            expected="a record under the suffix json",
        )  # fmt: skip
    members = {name: data for name, data in sample.data.items() if name != "json"}
    empty = [name for name, data in members.items() if not data]
    if empty:
        raise DataError("member is empty", where=f"{shard}:{sample.key}:{empty[0]}", given="0 bytes", fix=_REPAIR)
    return group_from_members(sample.data["json"], members, shard=shard, key=sample.key)


def _image_size(media: Media, group: PreferenceGroup) -> tuple[int, int]:
    try:
        return image_size(media.data[0], where=f"{group.shard}:{group.key}:{media.names[0]}")
    except DataError as error:
        logger.warning("%s; indexed with size 0, and quarantined when it is read", error)
        return 0, 0


def _video_facts(media: Media, group: PreferenceGroup) -> tuple[int, float, int, int]:
    """(frames, seconds, width, height) of a video file or of pre-extracted frames."""
    where = f"{group.shard}:{group.key}:{media.names[0]}"
    packed = packed_record(group.meta, media.names[0])
    seconds = float(packed["duration"]) if packed is not None else float(len(media.data))
    try:
        if media.kind == "video":
            return probe_video(media.data[0], where)
        return len(media.data), seconds, *image_size(media.data[0], where=where)
    except DataError as error:
        logger.warning("%s; indexed with size 0, and quarantined when it is read", error)
        return len(media.data), seconds, 0, 0
