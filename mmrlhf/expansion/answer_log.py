"""Answers kept one by one as they come: lines {"digest", "text", "problem"}, of which a crash loses none.

These are no `mmrlhf.parts`: each answer is paid for and takes seconds, so it is appended as it comes, and a file and a
flush for each of a million would cost more than asking. It is one writer's, and people and batch services write such
files too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.endpoints.completions import Answer
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


class AnswerLog:
    """The answers that a folder has, and room for more.

    Args:
        path: the file; one that a crash cut off in its last line is cut back to whole lines.
        made_by: what determines the answers; written first, and compared.

    Raises:
        DataError: the file was made by something else.
    """

    def __init__(self, path: Path, made_by: Mapping[str, Any]) -> None:
        self.answers: dict[str, Answer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _cut_to_whole_lines(path)
        rows = list(read_lines(path))
        self._read(path, rows, made_by)
        self._file = path.open("ab")
        if not rows:
            self._write({"made_by": dict(made_by)})

    def _read(self, path: Path, rows: Sequence[tuple[str, Mapping[str, Any]]], made_by: Mapping[str, Any]) -> None:
        first = rows[0][1] if rows else None
        if first is not None and first != {"made_by": json.loads(json.dumps(made_by))}:
            raise DataError(
                "answers were made by something else",
                where=path, given=first.get("made_by"), expected=f"{dict(made_by)}", fix="delete the file to ask again",
            )  # fmt: skip
        for where, row in rows[1:]:
            digest, text, problem = (text_of(row, name, where) for name in ("digest", "text", "problem"))
            self.answers[digest] = Answer(text, problem)

    def add(self, digest: str, answer: Answer) -> None:
        """Keep an answer; it is on its way to the disk when this returns."""
        self.answers[digest] = answer
        self._write({"digest": digest, "text": answer.text, "problem": answer.problem})

    def close(self) -> None:
        """Flush to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=True).encode() + b"\n")
        self._file.flush()


def _cut_to_whole_lines(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)
