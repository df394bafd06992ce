"""Answers that people or a batch service wrote down: lines {"digest", "text"}, each read or named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmrlhf.errors import DataError
from mmrlhf.records.json_text import parse_row


def read_lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (`file:line`, object) of a file of JSON lines; raises DataError for a line that holds no object."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}:{number}"
            try:
                row = parse_row(line, where)
            except DataError as error:
                raise DataError(
                    "a line of answers cannot be read",
                    where=where, given=f"{error.problem}: {error.given}", expected='{"digest": "...", ...}',
                    fix="repair the line, or delete it: its request is asked again",
                ) from error  # fmt: skip
            yield where, row


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """A text of a line of answers; raises DataError for one that is missing or no text."""
    value = row.get(name)
    if not isinstance(value, str):
        raise DataError(
            "an answer lacks a text",
            where=f"{where}:{name}", given=repr(value), expected=f'{{"{name}": "..."}}',
            fix="repair the line, or delete it: its request is asked again",
        )  # fmt: skip
    return value
