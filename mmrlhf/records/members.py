"""PreferenceGroup <-> the members of one shard sample: `key.json` and its media, plus keys that are safe in tars."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from mmrlhf.conversation import IMAGE, VIDEO, Conversation
from mmrlhf.errors import DataError
from mmrlhf.records.fields import MAX_NUMBER, MAX_RANK, MEDIA, check_responses, media_fields
from mmrlhf.records.json_text import parse_row
from mmrlhf.records.pair_forms import is_pair, ranked_pair
from mmrlhf.records.ranked_record import parse_ranked
from mmrlhf.types import Media, MediaKind, PreferenceGroup, Response

SCHEMA_VERSION = 1
IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
VIDEO_SUFFIXES = ("mp4", "mov", "mkv", "webm", "avi")
# A tar name holds 100 characters; the longest member suffix is shorter than the remaining 24.
MAX_KEY_LENGTH = 76

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_FRAME = re.compile(r"f\d+\.(\w+)")
_FIELDS = frozenset({"schema", "key", "prompt", "responses", "media", "category", "source", "licence", "pairs", "meta"})

_RESPONSE_FIELDS = {field.name for field in fields(Response)} - {"media"}


def safe_key(raw: str) -> str:
    """Turn an id into a sample key of `[A-Za-z0-9_-]+`; ids that had to change get a hash, so that none collide."""
    cleaned = _UNSAFE.sub("_", raw)[: MAX_KEY_LENGTH - 11]
    if cleaned == raw and raw:
        return raw
    return f"{cleaned}-{hashlib.blake2b(raw.encode(), digest_size=5).hexdigest()}"


def natural_order(name: str) -> list[int | str]:
    """Sort key under which `2.jpg` comes before `10.jpg`."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if position % 2 else part for position, part in enumerate(parts)]


def group_to_sample(group: PreferenceGroup) -> dict[str, Any]:
    """Lay a group out as one webdataset sample: `__key__`, `json` first, then the media members, all as bytes.

    The same group gives the same bytes everywhere. A prompt is written as its text where it is plain
    (`Conversation.plain`), else as messages; a response says its own media, if it has any.
    """
    record = {
        "schema": SCHEMA_VERSION,
        "key": group.key,
        "prompt": group.prompt.to_record(),
        "responses": [_response_record(response) for response in group.responses],
        "media": [_media_record(media) for media in group.media],
        "category": group.category,
        "source": group.source,
        "licence": group.licence,
        "pairs": None if group.pairs is None else [list(pair) for pair in group.pairs],
        "meta": dict(group.meta),
    }
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    everything = (*group.media, *(media for response in group.responses for media in response.media))
    members = {name: data for media in everything for name, data in zip(media.names, media.data, strict=True)}
    return {"__key__": group.key, "json": text.encode(), **members}


def group_from_members(
    json_bytes: bytes, members: Mapping[str, bytes | None], *, shard: str, key: str | None = None
) -> PreferenceGroup:
    """Put a group together from its record and its media members.

    Records without a schema number are other people's: they are read like a ranked record or a pair of any form that
    `ranked_pair` knows, and all members that look like images, frames or a video become their media.

    Args:
        json_bytes: the member `json`.
        members: {suffix: bytes} of the other members; None for bytes that were not read: then media have no data.
        shard: the shard's name, kept in the group and used in errors.
        key: the sample's key in the shard; required for other people's records, checked for ours.

    Raises:
        DataError: a broken record, a member that is listed but absent, a newer schema.
    """
    where = f"{shard}:{key or '?'}:json"
    row = parse_row(json_bytes, where)
    if "schema" not in row:
        return _foreign_group(row, members, shard, key, where)
    if row["schema"] != SCHEMA_VERSION:
        raise DataError(
            "record has another schema version",
            where=where, given=row["schema"], expected=f"{SCHEMA_VERSION}", fix="pack the data again with this version",
        )  # fmt: skip
    if row.keys() != _FIELDS or (key is not None and row["key"] != key):
        raise DataError(
            "record does not fit its sample",
            where=where, given=f"key {row.get('key')!r}, fields {sorted(row)}", expected=f"fields {sorted(_FIELDS)}",
        )  # fmt: skip
    wrong = next(_wrong_fields(row, where), None)
    if wrong is not None:
        raise DataError(
            "record is damaged, or not written by this program",
            where=f"{where}:{wrong[0]}", given=repr(wrong[1])[:200], expected=wrong[2],
            fix="a record of another program must not have the field `schema`; else pack the data again",
        )  # fmt: skip
    return _own_group(row, members, shard)


def _wrong_fields(row: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any, str]]:
    """(field, value, what it should be) of whatever `group_to_sample` would not write: anyone may write a tar."""
    for name in ("key", "category", "source", "licence"):
        if not isinstance(row[name], str):
            yield name, row[name], "text"
    if not isinstance(row["prompt"], str | list):
        yield "prompt", row["prompt"], "a text, or messages"
    if not isinstance(row["meta"], dict):
        yield "meta", row["meta"], "an object"
    if not isinstance(row["responses"], list) or not isinstance(row["media"], list):
        yield "responses, media", (row["responses"], row["media"]), "lists"
        return
    if not row["responses"]:
        yield "responses", [], "at least one"
    check_responses(len(row["responses"]), f"{where}:responses")
    for number, response in enumerate(row["responses"]):
        if not isinstance(response, dict) or not _is_response(response):
            yield f"responses.{number}", response, "text, rank, critiques, scores, reasons, model"
    for number, media in enumerate(row["media"]):
        if not _is_media(media):
            yield f"media.{number}", media, "a kind and the names of its members"
    count = len(row["responses"])
    for number, pair in enumerate(row["pairs"] or () if isinstance(row["pairs"], list | None) else [row["pairs"]]):
        fits = isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 0 <= i < count for i in pair)
        if not fits or pair[0] == pair[1]:
            yield f"pairs.{number}", pair, f"two different responses of 0 to {count - 1}"


def _is_media(record: Any) -> bool:
    names = record.get("names") if isinstance(record, dict) and record.keys() == {"kind", "names"} else None
    return isinstance(names, list) and bool(names) and all(isinstance(name, str) for name in names)


def _is_response(record: Mapping[str, Any]) -> bool:
    own = record.get("media", [])
    texts = (record.get("critiques"), record.get("reasons"))
    rank, scores = record.get("rank"), record.get("scores")
    return (
        record.keys() - {"media"} == _RESPONSE_FIELDS
        and isinstance(own, list)
        and all(map(_is_media, own))
        and isinstance(record["text"], str)
        and (rank is None or (type(rank) is int and 1 <= rank <= MAX_RANK))
        and (record["model"] is None or isinstance(record["model"], str))
        and all(isinstance(each, dict) and all(isinstance(text, str) for text in each.values()) for each in texts)
        and isinstance(scores, dict)
        and all(type(score) in (int, float) and abs(score) <= MAX_NUMBER for score in scores.values())
    )


def _own_group(row: dict[str, Any], members: Mapping[str, bytes | None], shard: str) -> PreferenceGroup:
    place = f"{shard}:{row['key']}"
    media, *own = (
        tuple(_take_media(media["kind"], media["names"], members, place) for media in each)
        for each in (row["media"], *(response.get("media", ()) for response in row["responses"]))
    )
    responses = zip(row["responses"], own, strict=True)
    shown = media or next(filter(None, own), ())
    return PreferenceGroup(
        key=row["key"],
        prompt=_conversation(row["prompt"], shown, place),
        responses=tuple(Response(**{**response, "media": each}) for response, each in responses),
        media=media,
        category=row["category"],
        source=row["source"],
        licence=row["licence"],
        pairs=None if row["pairs"] is None else tuple((chosen, rejected) for chosen, rejected in row["pairs"]),
        meta=row["meta"],
        shard=shard,
    )


def _conversation(record: Any, media: Sequence[Media], place: str) -> Conversation:
    try:
        return Conversation.from_record(record, [each.slot for each in media])
    except ValueError as error:
        raise DataError(
            "record is damaged, or not written by this program",
            where=f"{place}:json:prompt", given=f"{error}: {str(record)[:200]}", expected="a text, or its messages",
        ) from error  # fmt: skip


def _response_record(response: Response) -> dict[str, Any]:
    return {
        "text": response.text,
        "rank": response.rank,
        "critiques": dict(response.critiques),
        "scores": dict(response.scores),
        "reasons": dict(response.reasons),
        "model": response.model,
        **({"media": [_media_record(media) for media in response.media]} if response.media else {}),
    }


def _media_record(media: Media) -> dict[str, Any]:
    return {"kind": media.kind, "names": list(media.names)}


def _take_media(kind: str, names: list[str], members: Mapping[str, bytes | None], where: str) -> Media:
    missing = [name for name in names if name not in members]
    if missing or kind not in get_args(MediaKind):
        raise DataError(
            "sample lacks a member" if missing else "unknown kind of media",
            where=f"{where}:{missing[0] if missing else kind}",
            given=f"members {sorted(members)}",
            expected=f"{kind} members {names}",
            fix="pack the shard again, or fetch it again if it was copied",
        )
    data = [members[name] for name in names]
    read = tuple(each for each in data if each is not None)
    return Media(kind, tuple(names), read if len(read) == len(data) else ())  # pyright: ignore[reportArgumentType]


def _foreign_group(
    row: dict[str, Any], members: Mapping[str, bytes | None], shard: str, key: str | None, where: str
) -> PreferenceGroup:
    if key is None:
        raise ValueError("a record without a schema needs the sample's key")
    row = ranked_pair(row, where) if is_pair(row) else row
    found = _media_members(members, where)
    named = {item.slot for item in media_fields(row, where)}
    if not named <= {media.slot for media in found}:
        raise DataError(
            "sample lacks a member",
            where=where, given=f"members {sorted(members)}", expected="the media that the record names",
        )  # fmt: skip
    # The members are the media, whatever their files were called when the record was written.
    by_name = {media.names[0]: media for media in found}
    fields: dict[str, Any] = {name: value for name, value in row.items() if name not in MEDIA}
    for name, slot in (("images", IMAGE), ("videos", VIDEO)):
        fields[name] = [media.names[0] for media in found if media.slot == slot]
    record = parse_ranked(fields, where)
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


def _media_members(members: Mapping[str, bytes | None], where: str) -> list[Media]:
    """Pictures in the order of their numbers, then the video: what looks like them by its suffix."""
    names = sorted(members, key=natural_order)
    frames = [name for name in names if (match := _FRAME.fullmatch(name)) and match[1] in IMAGE_SUFFIXES]
    images = [name for name in names if name.rpartition(".")[2] in IMAGE_SUFFIXES and name not in frames]
    videos = [name for name in names if name.rpartition(".")[2] in VIDEO_SUFFIXES]
    if len(videos) + bool(frames) > 1:
        raise DataError("sample has more than one video", where=where, given=f"members {names}", expected="one video")
    media = [_take_media("image", [name], members, where) for name in images]
    media += [_take_media("video", [name], members, where) for name in videos]
    return media + ([_take_media("frames", frames, members, where)] if frames else [])
