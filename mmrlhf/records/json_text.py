"""JSON of records, read so that whatever comes out can be written again: no NaN, no infinity, no half characters."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from mmrlhf.errors import DataError

Row = dict[str, Any]
# Lists and objects within each other. How many Python walks through depends on where the walk begins: of a thousand,
# what could just be read cannot be written further down.
DEEPEST = 100


class Kept:
    """What JSON does not hold and a record may: it stays as it is where a record is made plain."""


class TwiceError(ValueError):
    """An object has two values under one name."""


def parse_row(raw: bytes, where: str) -> Row:
    """Read one line of JSON as an object; numbers that are not finite, which JSON cannot hold, count as missing values.

    Raises:
        DataError: not UTF-8, not JSON, not an object, text that no UTF-8 file can hold, or nested too deeply.
    """
    return as_row(_parse(raw, where, "one JSON object per line"), where)


def as_row(value: Any, where: str) -> Row:
    """Return a value that is an object; raises DataError for any other."""
    if not isinstance(value, dict):
        raise DataError("line is not a JSON object", where=where, given=type(value).__name__, expected="{...}")
    return value


def plain_row(value: Mapping[str, Any], where: str) -> Row:
    """Return a record from a table or a program with what JSON cannot hold left out (NaN) or written as text (dates).

    Raises:
        DataError: text that no UTF-8 file can hold, numbers of thousands of digits, a structure that contains itself.
    """
    try:
        row = {str(key): _plain(item) for key, item in value.items()}
        _check_depth(row, where)
        _check_text(row, where)
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError("record cannot be written as JSON", where=where, given=str(error)) from error
    return row


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    # Bytes stay: media may lie inside a record; anywhere else they are a field of the wrong type.
    return value if value is None or isinstance(value, bool | int | str | bytes | Kept) else str(value)


def _parse(raw: bytes, where: str, expected: str) -> Any:
    try:
        value = DECODER.decode(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            "line is not JSON",
            where=where,
            given=f"{raw[:60].decode(errors='replace')!r} ({error})",
            expected=expected,
            fix="repair the line",
        ) from error
    check_value(raw, value, where)
    return value


def check_value(raw: bytes, value: Any, where: str) -> None:
    """Raise DataError for what these bytes can say and nothing can write: half of a surrogate pair, endless nesting."""
    if raw.count(b"[") + raw.count(b"{") > DEEPEST:
        _check_depth(value, where)
    if b"\\ud" in raw.lower():
        _check_text(value, where)


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object that says each thing once: of two values under one name, one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(name for name, _ in pairs)
        raise TwiceError(f"the field {next(name for name in times if times[name] > 1)!r} is there twice")
    return found


# Made once: with these arguments `json.loads` would make a decoder for every record.
PLAIN = json.JSONDecoder()
DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=lambda _: None, parse_float=_finite)


def _check_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        inner = [each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list)]
        if not inner:
            return
        level = [item for items in inner for item in items]
    raise DataError(
        "record is nested too deeply", where=where, expected=f"at most {DEEPEST} lists and objects within each other"
    )


def _check_text(value: Any, where: str) -> None:
    try:
        # bytes have no place in JSON, and no surrogates either
        json.dumps(value, ensure_ascii=False, default=repr).encode()
    except UnicodeEncodeError as error:
        raise DataError("text holds half of a surrogate pair", where=where, given=ascii(error.object[:60])) from error
