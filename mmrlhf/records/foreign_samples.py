"""Samples of WebDataset tars that another program wrote: a record of any known form, and members that are its media.

Where a record names members, its own list decides which of them are its media, and their order. Where it names files
that are none of them (paths from before they were packed), or none, all pictures and clips are its media, pictures by
their numbers; as many as it names. A member that is neither a picture nor a clip, nor known to be something else, is an
error that names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, get_args

from mmrlhf.conversation import IMAGE, VIDEO, Slot
from mmrlhf.errors import DataError
from mmrlhf.records.embedded import Embedded, embed_media
from mmrlhf.records.fields import MEDIA, MediaItem, media_fields
from mmrlhf.records.member_names import IMAGE_SUFFIXES, OTHER_SUFFIXES, VIDEO_SUFFIXES, natural_order, suffix_of
from mmrlhf.records.pair_forms import is_pair, ranked_pair
from mmrlhf.records.ranked_record import parse_ranked
from mmrlhf.types import Media, MediaKind, PreferenceGroup

_FRAME = re.compile(r"f\d+\.(\w+)")

Members = Mapping[str, bytes | None]


def foreign_group(row: dict[str, Any], members: Members, shard: str, key: str | None, where: str) -> PreferenceGroup:
    """Put a group together from another program's record and its members.

    Raises:
        DataError: a record of no known form, a member that it names and that is absent, or one that nothing knows.
    """
    if key is None:
        raise ValueError("a record without a schema needs the sample's key")
    row = ranked_pair(row, where) if is_pair(row) else row
    answers = row.get("responses")
    if isinstance(answers, list) and any(isinstance(each, dict) and any(map(each.get, MEDIA)) for each in answers):
        raise DataError(
            "a response of a tar's record has media of its own", where=where,
            expected="media of the whole record", fix="pack the records instead: stage=pack reads such responses",
        )  # fmt: skip
    media = _media_of(media_fields(row, where), members, key, where)
    # The members are the media, whatever their files were called when the record was written.
    by_name = {each.names[0]: each for each in media}
    fields: dict[str, Any] = {name: value for name, value in row.items() if name not in MEDIA}
    for name, slot in (("images", IMAGE), ("videos", VIDEO)):
        fields[name] = [each.names[0] for each in media if each.slot == slot]
    # a tar may hold queries that are still to be answered
    record = parse_ranked(fields, where, answered=False)
    return PreferenceGroup(
        key=key,
        prompt=record.prompt,
        responses=record.responses,
        media=tuple(by_name[str(item.ref)] for item in record.media),
        category=record.category or "unknown",
        source=str(row.get("source") or ""),
        licence=str(row.get("licence") or ""),
        pairs=record.pairs,
        meta=record.meta,
        shard=shard,
    )


def take_media(kind: str, names: Sequence[str], members: Members, where: str) -> Media:
    """The medium that these members are; raises DataError for one that is absent, or a kind that there is not."""
    missing = [name for name in names if name not in members]
    if missing or kind not in get_args(MediaKind):
        raise DataError(
            "sample lacks a member" if missing else "unknown kind of media",
            where=f"{where}:{missing[0] if missing else kind}",
            given=f"members {sorted(members)}",
            expected=f"{kind} members {list(names)}",
            fix="pack the shard again, or fetch it again if it was copied",
        )
    data = [members[name] for name in names]
    read = tuple(each for each in data if each is not None)
    return Media(kind, tuple(names), read if len(read) == len(data) else ())  # pyright: ignore[reportArgumentType]


def _media_of(named: Sequence[MediaItem], members: Members, key: str, where: str) -> list[Media]:
    by_name = _named_members(members, key)
    found = [by_name.get(PurePosixPath(str(item.ref)).name.lower()) for item in named]
    # a medium may be shown twice; other files of one name are none of the members
    if named and None not in found and len(set(found)) == len({str(item.ref) for item in named}):
        return [
            take_media("image" if item.slot == IMAGE else "video", [str(name)], members, where)
            for name, item in zip(found, named, strict=True)
        ]
    media = _all_media(members, where)
    for slot in (IMAGE, VIDEO):
        _require_as_many(slot, [item for item in named if item.slot == slot], media, members, where)
    return media


def _refuse_embedded(named: Sequence[MediaItem], where: str) -> None:
    inside = [item for item in named if isinstance(embed_media({"ref": item.ref})["ref"], Embedded)]
    if inside:
        raise DataError(
            "a medium lies inside the record", where=f"{where}:json",
            given=f"base64 of {len(inside)} of {len(named)} media", expected="members of the tar beside the record",
            fix="write the records into a jsonl file and pack that, which reads media in either place: stage=pack",
        )  # fmt: skip


def _named_members(members: Members, key: str) -> dict[str, str]:
    """How a record may name each member: by its suffix (`0.png`) or by its whole name (`KEY.0.png`), in any case."""
    found: dict[str, str] = {}
    for suffix in members:
        for name in (suffix, f"{key}.{suffix}"):
            found.setdefault(name.lower(), suffix)
    return found


def _require_as_many(slot: Slot, named: list[MediaItem], media: list[Media], members: Members, where: str) -> None:
    there = sum(each.slot == slot for each in media)
    refs = ", ".join(str(item.ref)[:80] for item in named[:8])
    if named and len(named) != there:
        _refuse_embedded(named, where)
        raise DataError(
            "sample lacks a member" if there < len(named) else "sample has other media than its record names",
            where=where,
            given=f"members {sorted(members)}",
            expected=f"the {len(named)} {slot.kind}s that the record names: {refs}",
        )


def _all_media(members: Members, where: str) -> list[Media]:
    """Pictures in the order of their numbers, then the video: what looks like them by its suffix."""
    names = sorted(members, key=natural_order)
    known = IMAGE_SUFFIXES | OTHER_SUFFIXES | {*VIDEO_SUFFIXES}
    unknown = [name for name in names if suffix_of(name) not in known]
    if unknown:
        raise DataError(
            "sample has a member that nothing knows",
            where=f"{where.rpartition(':')[0]}:{unknown[0]}",
            expected="pictures, clips, and texts or labels beside them, by their suffix",
            fix="name the media in the record, or write the tar without such members",
        )
    frames = [name for name in names if (match := _FRAME.fullmatch(name)) and match[1] in IMAGE_SUFFIXES]
    images = [name for name in names if suffix_of(name) in IMAGE_SUFFIXES and name not in frames]
    videos = [name for name in names if suffix_of(name) in VIDEO_SUFFIXES]
    if len(videos) + bool(frames) > 1:
        raise DataError("sample has more than one video", where=where, given=f"members {names}", expected="one video")
    media = [take_media("image", [name], members, where) for name in images]
    media += [take_media("video", [name], members, where) for name in videos]
    return media + ([take_media("frames", frames, members, where)] if frames else [])
