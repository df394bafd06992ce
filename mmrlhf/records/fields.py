"""Typed access to the JSON of one record: lenient about names people use, strict about structure.

Every complaint is a `DataError` whose place reads `file:line:field`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from mmrlhf.conversation import IMAGE, VIDEO, Slot
from mmrlhf.errors import DataError
from mmrlhf.records.embedded import Embedded

# A media file: a path below the data folder, or where it lies inside the record.
MediaRef = str | Embedded
PROMPT = ("prompt", "question", "query", "instruction")
# Above these, numbers do not fit into the tables and tensors that hold them.
MAX_RANK, MAX_NUMBER = 2**31 - 1, 1e300
# Responses of one query; every two of them may be a pair.
MAX_RESPONSES = 512

# Fields that name media, under whatever name layouts have for them.
IMAGES = ("images", "image", "image_paths", "image_path", "image_urls", "image_url", "imgs", "img")
VIDEOS = ("videos", "video", "video_paths", "video_path", "video_urls", "video_url")
AUDIO = ("audios", "audio", "audio_path")
MEDIA = IMAGES + VIDEOS


class MediaItem(NamedTuple):
    """One picture or video that a record names."""

    slot: Slot
    ref: MediaRef


def pick(row: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    """Return (name, value) of the first of these fields that is present and not null, or (first name, None)."""
    return next(((name, row[name]) for name in names if row.get(name) is not None), (names[0], None))


def text_field(row: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """Return a required text field under any of its names."""
    name, value = pick(row, names)
    if value is None:
        raise DataError(
            f"record lacks the field {name!r}",
            where=f"{where}:{name}",
            given=f"fields {sorted(row)}",
            expected=" or ".join(names),
            fix="repair the record, or name another file",
        )
    if not isinstance(value, str):
        raise wrong_type(where, name, value, "text")
    return value


def optional_text(row: Mapping[str, Any], names: Sequence[str], where: str) -> str | None:
    """Return a text field, or None where it is absent or null."""
    name, value = pick(row, names)
    if value is not None and not isinstance(value, str):
        raise wrong_type(where, name, value, "text")
    return value


def id_field(row: Mapping[str, Any], where: str, names: Sequence[str] = ("id", "question_id")) -> str:
    """Return the record's id as text (ids are text or whole numbers)."""
    name, value = pick(row, names)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_field(row, (name,), where)


def text_map(row: Mapping[str, Any], names: Sequence[str], default_key: str, where: str) -> dict[str, str]:
    """Return {kind: text} of a field that holds an object or, for one kind only, plain text; nulls are left out."""
    name, value = pick(row, names)
    if isinstance(value, str):
        return {default_key: value}
    items = _object(value, where, name)
    for kind, text in items.items():
        if not isinstance(text, str):
            raise wrong_type(where, f"{name}.{kind}", text, "text")
    return items


def number_map(row: Mapping[str, Any], names: Sequence[str], default_key: str, where: str) -> dict[str, float]:
    """Return {dimension: number} of a field that holds an object or a single number; nulls are left out."""
    name, value = pick(row, names)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = {default_key: value}
    items = _object(value, where, name)
    for kind, number in items.items():
        if not is_number(number):
            raise wrong_type(where, f"{name}.{kind}", number, "a finite number")
    return items


def is_number(value: object) -> TypeGuard[float]:
    """Whether this is a number that a table can hold: no bool, no NaN, no infinity, no integer of 400 digits."""
    # an integer of any length can be compared, but not always made a float; a NaN fails the comparison
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_NUMBER


def rank_field(row: Mapping[str, Any], where: str) -> int | None:
    """Return a rank (1 is best), or None where there is none."""
    name, value = pick(row, ("rank", "ranking", "overall_rank"))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_RANK):
        raise wrong_type(where, name, value, "a whole number, 1 for the best response")
    return value


def media_fields(row: Mapping[str, Any], where: str) -> tuple[MediaItem, ...]:
    """Return the pictures, then the videos that a record's own fields name; none of either is text only.

    Of several fields for the same the first that is filled counts: null, "" and [] are not.

    Raises:
        DataError: another structure, or a filled field of media that no model here reads.
    """
    audio = next((name for name in AUDIO if row.get(name)), None)
    if audio is not None:
        raise wrong_type(where, audio, row[audio], "no sound: models of this project read pictures and videos")
    images, videos = (_media_field(row, names, kind, where) for names, kind in ((IMAGES, IMAGE), (VIDEOS, VIDEO)))
    return images + videos


def _media_field(row: Mapping[str, Any], names: Sequence[str], slot: Slot, where: str) -> tuple[MediaItem, ...]:
    name, value = next(((name, row[name]) for name in names if row.get(name)), (names[0], []))
    value = [value] if isinstance(value, str | Embedded) else value
    if not isinstance(value, list) or not all(isinstance(item, str | Embedded) and item for item in value):
        raise wrong_type(where, name, value, f"one {slot.kind} or a list, each a path or embedded bytes")
    _say_the_same(row, names[:2], slot, where)
    return tuple(MediaItem(slot, item) for item in value)


def _say_the_same(row: Mapping[str, Any], names: Sequence[str], slot: Slot, where: str) -> None:
    """A list and a single one beside it name the same; a path beside bytes (`image_path`) is where they came from."""
    several, single = (row.get(name) or [] for name in names)
    singles = [single] if isinstance(single, str | Embedded) else single
    known = {str(item) for item in several} if isinstance(several, list) else {str(several)}
    if several and singles and not (isinstance(singles, list) and {str(item) for item in singles} <= known):
        raise DataError(
            f"two fields name different {slot.kind}s",
            where=f"{where}:{names[1]}", given=f"{str(single)[:80]!r}, which is not among {names[0]}",
            expected="all of them in one field, in their order", fix="repair the record",
        )  # fmt: skip


def check_responses(number: int, where: str) -> None:
    """Refuse a query with more responses than can be compared with each other (DataError)."""
    if number > MAX_RESPONSES:
        raise DataError(
            "a query has too many responses",
            where=where, given=f"{number}", expected=f"at most {MAX_RESPONSES}: every two of them may be a pair",
            fix="keep some of them, or split the query into several with ids and prompts of their own",
        )  # fmt: skip


def wrong_type(where: str, name: str, value: object, expected: str) -> DataError:
    """Make the error for a field of another type or range than expected."""
    return DataError(
        f"field {name!r} has another structure than expected",
        where=f"{where}:{name}",
        given=f"{type(value).__name__} {str(value)[:80]!r}",
        expected=expected,
        fix="repair the record, or name another file",
    )


def _object(value: Any, where: str, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_type(where, name, value, "an object")
    return {kind: item for kind, item in value.items() if item is not None}
