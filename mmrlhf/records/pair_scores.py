"""Scores of pairs by whoever gave them: a table with a row for each pair, as JSON lines, JSON, CSV or Parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmrlhf.errors import DataError
from mmrlhf.files import read_regular
from mmrlhf.records.sources import file_source

CHOSEN, REJECTED = "score_chosen", "score_rejected"
# no reward is as large; squares and sums of such scores are still numbers
MAX_SCORE = 1e30
LAYOUT = (
    f"a row for each pair, with the numbers {CHOSEN} and {REJECTED}, of at most {MAX_SCORE:g} in size; "
    "optional: group (the query) and category; as .jsonl, .json, .csv or .parquet"
)


@dataclass(frozen=True)
class PairScores:
    """Scores of P pairs: the query of each (its own where none is named), its category, the two scores."""

    groups: tuple[str, ...]
    categories: tuple[str, ...]
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.chosen)


def read_pair_scores(path: Path) -> PairScores:
    """Read a file of scores.

    Raises:
        DataError: no file, no row, a row without two numbers, or some rows with a group and others without; names it.
    """
    if not path.is_file():
        raise DataError("no such file of scores", where=path, expected=LAYOUT)
    rows = [_row(where, row) for where, row in (_csv_rows(path) if path.suffix.lower() == ".csv" else _rows(path))]
    if not rows:
        raise DataError("a file of scores without a row", where=path, expected=LAYOUT)
    named = [group is not None for group, *_ in rows]
    if any(named) and not all(named):
        raise DataError(
            "some pairs say which query they are of, and others do not",
            where=f"{path.name}, pair {named.index(not named[0]) + 1}",
            given=f"{sum(named)} of {len(rows)} with a group",
            expected="a group in every row, or in none",
        )
    groups = tuple(f"pair-{number}" if group is None else group for number, (group, *_) in enumerate(rows, start=1))
    _, categories, chosen, rejected = zip(*rows, strict=True)
    return PairScores(groups, categories, chosen, rejected)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for where, row in file_source(path).read():
        if isinstance(row, DataError):
            raise row
        yield where, row


def _csv_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = read_regular(path, what="file of scores").decode("utf-8-sig")
        for number, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), strict=True), start=1):
            yield f"{path.name}, pair {number}", {str(name): value for name, value in row.items() if value != ""}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("CSV file cannot be read", where=path, given=str(error), expected=LAYOUT) from error


def _row(where: str, row: Mapping[str, Any]) -> tuple[str | None, str, float, float]:
    group, category = (None if row.get(name) in (None, "") else str(row[name]) for name in ("group", "category"))
    numbers = _number(where, row, CHOSEN), _number(where, row, REJECTED)
    return group, "all pairs" if category is None else category, *numbers


def _number(where: str, row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    try:
        number = math.nan if isinstance(value, bool) or value is None else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) <= MAX_SCORE:
        raise DataError(
            "a score is no number, or too large",
            where=f"{where}: {name}",
            given="nothing" if value is None else str(value)[:80],
            expected=LAYOUT,
        )
    return number
