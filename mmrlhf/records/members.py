"""PreferenceGroup <-> the members of one shard sample: `key.json` and its media, plus keys that are safe in tars."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from mmrlhf.conversation import Conversation
from mmrlhf.errors import DataError
from mmrlhf.records.fields import MAX_NUMBER, MAX_RANK, check_responses
from mmrlhf.records.foreign_samples import foreign_group, take_media
from mmrlhf.records.json_text import parse_row
from mmrlhf.types import Media, PreferenceGroup, Response

SCHEMA_VERSION = 1
# A tar name holds 100 characters; the longest member suffix is shorter than the remaining 24.
MAX_KEY_LENGTH = 76

_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
_FIELDS = frozenset({"schema", "key", "prompt", "responses", "media", "category", "source", "licence", "pairs", "meta"})

_RESPONSE_FIELDS = {field.name for field in fields(Response)} - {"media"}


def safe_key(raw: str) -> str:
    """Turn an id into a sample key of `[A-Za-z0-9_-]+`; ids that had to change get a hash, so that none collide."""
    cleaned = _UNSAFE.sub("_", raw)[: MAX_KEY_LENGTH - 11]
    if cleaned == raw and raw:
        return raw
    return f"{cleaned}-{hashlib.blake2b(raw.encode(), digest_size=5).hexdigest()}"


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

    Records without a schema number are other people's (`mmrlhf.records.foreign_samples`).

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
        return foreign_group(row, members, shard, key, where)
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
        tuple(take_media(media["kind"], media["names"], members, place) for media in each)
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
