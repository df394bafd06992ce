"""Errors a user can cause: each says what was given, what was expected, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

from typing_extensions import override

from mmrlhf.text import one_line


class Lines(tuple[str, ...]):
    """A field of an error that takes several lines."""

    __slots__ = ()


class UserError(ValueError):
    """Bad input of any kind, printed by `run.py` as one screen without a traceback.

    The fields are kept as given; wherever they are shown they are one line each, without control characters.

    Args:
        problem: one sentence that names what is wrong.
        where: file, line, key, shard or setting that it was found in.
        given: the offending value; `Lines` for several.
        expected: what would have been right.
        fix: what the user can do now.
        argument: the parameter that the value was given for, where `where` is not known yet: whoever made the object
            knows which key of the config that is (`below`).
    """

    def __init__(
        self,
        problem: str,
        *,
        where: object | None = None,
        given: object | None = None,
        expected: str | None = None,
        fix: object | None = None,
        argument: str | None = None,
    ) -> None:
        self.problem, self.given, self.expected, self.fix = problem, given, expected, fix
        self.argument, self.where = argument, argument if where is None else where
        super().__init__(problem)

    @override
    def __str__(self) -> str:
        shown = [f"{label}: " + "\n    ".join(lines) for label, lines in self.fields()]
        return "\n  ".join([one_line(self.problem), *shown])

    def below(self, place: str) -> Self:
        """Say which object the argument is of: the dotted key of that object; without an argument, nothing changes."""
        if self.argument is not None:
            self.argument = self.where = f"{place}.{self.argument}".strip(".")
        return self

    def fields(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (label, lines that are safe to show) of every field but the problem that has a value."""
        for label in ("where", "given", "expected", "fix"):
            value = getattr(self, label)
            if value is not None:
                yield label, [one_line(line) for line in (value if isinstance(value, Lines) else (value,))]


class ConfigError(UserError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(UserError):
    """A record, file, shard or table that is damaged, missing or in another layout."""


class MissingRowError(DataError):
    """A table lacks a row that nothing explains; never passed over, as damage of one record is."""


class ModelError(UserError):
    """A checkpoint that cannot be loaded or does not fit what it is used for."""


class HubError(UserError):
    """A hub, or another remote place, that could not be reached."""
