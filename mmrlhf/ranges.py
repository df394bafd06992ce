"""What a parameter may be, declared where the parameter is: ranges of numbers, choices, and the check of both.

    lr: Positive = 1e-6
    schedule: Literal["cosine", "constant", "linear"] = "cosine"

`check_arguments` reads these declarations, so there is one place that refuses a value, and not a number (NaN) passes
nowhere. Settings classes call `check_fields` when they are made; the command checks every object and every stage's
arguments before the first stage runs.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Interval, Le, Lt

from mmrlhf.errors import ConfigError

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Interval(ge=0, le=1)]
ShareBelowOne = Annotated[float, Interval(ge=0, lt=1)]
ShareBelowHalf = Annotated[float, Interval(ge=0, lt=0.5)]
FromOne = Annotated[float, Ge(1)]
InsideHalf = Annotated[float, Interval(gt=0, lt=0.5)]
Finite = Annotated[float, Interval()]

_HOLDS: dict[Any, Callable[[Any, Any], bool]] = {Ge: operator.ge, Gt: operator.gt, Le: operator.le, Lt: operator.lt}
_SAID: dict[Any, str] = {Ge: "of {} or more", Gt: "above {}", Le: "of {} or less", Lt: "below {}"}


def check_fields(settings: Any) -> None:
    """Raise ConfigError for the first field of a dataclass that is not what its annotation says."""
    values = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings) if field.init}
    check_arguments(type(settings), values)


def check_draws(what: str, number: int, temperature: float, *, name: str = "num_samples") -> None:
    """Refuse several of what temperature 0 makes once: each would be the likeliest, the same at n times the cost.

    Args:
        what: is drawn, in an error.
        name: of the setting that says the number.

    Raises:
        ConfigError: names the temperature.
    """
    if number > 1 and temperature == 0:
        raise ConfigError(
            f"several {what} would all be the same",
            argument="temperature", given=f"{name}={number}, temperature={temperature}",
            expected=f"a temperature above 0 where {name} is more than 1",
        )  # fmt: skip


def whole(number: float) -> int:
    """The whole part of what decimal settings come to, which floating point may put just below it (66.0 / 1.1)."""
    return math.floor(number * (1 + 1e-12))


def check_arguments(owner: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise ConfigError, with `argument` set, for the first value that is not what the owner declares.

    Args:
        owner: a class or function whose parameters are annotated; what is no number, choice or truth value is free.
        values: some of its arguments by name.
    """
    hints = declared(owner)
    for name, value in values.items():
        expected = _mismatch(value, hints[name]) if name in hints else None
        if expected is not None:
            raise ConfigError(f"{name} cannot be this", argument=name, given=value, expected=expected)


@cache
def declared(owner: Callable[..., Any]) -> Mapping[str, Any]:
    """Annotations of a class's fields or a function's arguments by name; names that are not imported count as Any."""
    if inspect.isclass(owner) and not dataclasses.is_dataclass(owner):
        owner = owner.__init__
    absent: dict[str, Any] = {}
    while True:
        try:
            return get_type_hints(owner, localns=dict(absent), include_extras=True)
        except NameError as error:  # under TYPE_CHECKING
            if error.name is None or error.name in absent:
                return {}
            absent[error.name] = _Absent(error.name, (), {})


class _Absent(type):
    """Stands in for a module or class that is imported for type checkers only."""

    def __getattr__(cls, name: str) -> Any:
        return Any


def _mismatch(value: Any, hint: Any) -> str | None:
    """What was expected, where a value does not fit an annotation; None where it fits."""
    origin, members = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _wanted(hint) if _mismatch(value, members[0]) is not None else _out_of_range(value, hint)
    if origin in (Union, UnionType):
        missed = [_mismatch(value, member) for member in members]
        return None if None in missed else " or ".join(dict.fromkeys(text for text in missed if text is not None))
    if origin is Literal:
        fits = any(value == member and type(value) is type(member) for member in members)
        return None if fits else f"one of {', '.join(map(str, members))}"
    if hint is type(None):
        return None if value is None else "null"
    if hint in (bool, int, float):
        return None if _is_a(value, hint) else _wanted(hint)
    return _mismatch_inside(value, origin, members)


def _mismatch_inside(value: Any, origin: Any, members: tuple[Any, ...]) -> str | None:
    """The same for the items of sequences and the values of mappings, and for one text or number in place of them."""
    if not members or not inspect.isclass(origin):
        return None
    if isinstance(value, str | bool | Real) and issubclass(origin, Mapping | Sequence):
        return "{NAME: VALUE, ...}" if issubclass(origin, Mapping) else "a list, [VALUE, ...]"
    if issubclass(origin, Mapping):
        items = list(value.values()) if isinstance(value, Mapping) else []
        wanted = [members[-1]] * len(items)
    elif isinstance(value, list | tuple) and origin is tuple and members[-1] is not ...:
        if len(value) != len(members):
            return f"{len(members)} values"
        items, wanted = list(value), list(members)
    else:
        items = list(value) if isinstance(value, list | tuple) else []
        wanted = [members[0]] * len(items)
    found = [_mismatch(item, each) for item, each in zip(items, wanted, strict=True)]
    return next((f"each {text}" for text in found if text is not None), None)


def _is_a(value: Any, kind: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    return isinstance(value, Integral) if kind is int else isinstance(value, Real) and math.isfinite(value)


def _wanted(hint: Any) -> str:
    kind, limits = (get_args(hint)[0], _limits(hint)) if get_origin(hint) is Annotated else (hint, [])
    noun = {bool: "true or false", int: "a whole number", float: "a finite number"}.get(kind, str(kind))
    return " ".join([noun, " and ".join(_SAID[type(limit)].format(_bound(limit)) for limit in limits)]).strip()


def _out_of_range(value: Any, hint: Any) -> str | None:
    return None if all(_HOLDS[type(limit)](value, _bound(limit)) for limit in _limits(hint)) else _wanted(hint)


def _limits(hint: Any) -> list[Any]:
    found: list[Any] = []
    for item in get_args(hint)[1:]:
        found += list(item) if isinstance(item, Interval) else [item]
    return [item for item in found if type(item) in _HOLDS]


def _bound(limit: Any) -> Any:
    return getattr(limit, type(limit).__name__.lower())
