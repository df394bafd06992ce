"""A summary's way into JSON and back: strict, so that a key that was renamed is an error and never an empty place."""

from __future__ import annotations

import collections.abc
import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Self, get_args, get_origin, get_type_hints

from mmrlhf.errors import DataError
from mmrlhf.files import write_json

METRICS_FILE = "metrics.json"
_NUMBERS = {int: (int,), float: (int, float), bool: (bool,), str: (str,)}


class Summary:
    """Base of the dataclasses whose fields are the keys of a JSON object.

    A field whose default is None may be absent, and is left out where it is None; every other one is always there.
    """

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, where: object) -> Self:
        """Read what `to_json` gave.

        where: the file that it is from. Raises: DataError for a key that is missing, unknown or of another type.
        """
        hints, given = field_types(cls), set(content)
        missing = [name for name in hints if name not in given and name not in _optional(cls)]
        unknown = sorted(given - set(hints))
        for names, problem in ((missing, "a summary lacks a key"), (unknown, "a summary has an unknown key")):
            if names:
                raise _refusal(problem, where, ", ".join(names), f"the keys of {cls.__name__}: {', '.join(hints)}")
        return cls(
            **{name: _read(kind, content[name], f"{where}: {name}") for name, kind in hints.items() if name in given}
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values under the fields' names."""
        found = {name: getattr(self, name) for name in field_types(type(self))}
        return {
            name: _plain(value)
            for name, value in found.items()
            if value is not None or name not in _optional(type(self))
        }

    def write(self, folder: Path) -> dict[str, Any]:
        """Write `metrics.json` into a stage's folder; returns what it holds, for the store."""
        content = self.to_json()
        write_json(folder / METRICS_FILE, content)
        return content


@cache
def field_types(kind: type[Summary]) -> dict[str, Any]:
    """The fields of a summary's dataclass with their types."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]


@cache
def _optional(kind: type[Summary]) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind) if field.default is None)  # type: ignore[arg-type]


def _read(kind: Any, value: Any, place: str) -> Any:
    """A plain value as the type of its field says."""
    shape, parts = get_origin(kind), get_args(kind)
    if NoneType in parts:
        (kind,) = (part for part in parts if part is not NoneType)
        return None if value is None else _read(kind, value, place)
    if shape is collections.abc.Mapping and isinstance(value, Mapping):
        return {key: _read(parts[1], item, f"{place}/{key}") for key, item in value.items()}
    if shape in (collections.abc.Sequence, tuple) and isinstance(value, list | tuple):
        made = tuple if shape is tuple else list
        return made(_read(parts[0], item, f"{place}/{number}") for number, item in enumerate(value))
    if shape is None and issubclass(kind, Summary) and isinstance(value, Mapping):
        return kind.from_json(value, where=place)
    if shape is None and isinstance(value, _NUMBERS.get(kind, ())) and (kind is bool or not isinstance(value, bool)):
        return value
    expected = getattr(kind, "__name__", str(kind))
    raise _refusal("a summary's value is of another type", place, f"{type(value).__name__} {value!r:.60}", expected)


def _plain(value: Any) -> Any:
    if isinstance(value, Summary):
        return value.to_json()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _refusal(problem: str, where: object, given: str, expected: str) -> DataError:
    fix = "let its stage make it again (code=rebuild, or delete its folder)"
    return DataError(problem, where=where, given=given, expected=expected, fix=fix)
