"""Histograms of training as one file: a JSON object a line, `{"step", "name", "low", "high", "counts"}`.

Counts are of equally wide bins from low to high. Like a curve file it is only appended to.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mmrlhf.errors import DataError
from mmrlhf.files import read_lines

FILE_NAME = "histograms.jsonl"


@dataclass(frozen=True)
class Histogram:
    """Values of one step, counted in equally wide bins from low to high."""

    step: int
    name: str
    low: float
    high: float
    counts: tuple[int, ...]


def read_histograms(folder: Path) -> dict[str, list[Histogram]]:
    """Read the file in a stage's folder: every name's histograms in the order of steps; empty without a file.

    Where a step was written twice the later one counts. Raises: DataError for a line that is no histogram.
    """
    path = Path(folder) / FILE_NAME
    found: dict[str, dict[int, Histogram]] = {}
    for row in read_rows(path) if path.is_file() else ():
        found.setdefault(row.name, {})[row.step] = row
    return {name: [rows[step] for step in sorted(rows)] for name, rows in found.items()}


def read_rows(path: Path) -> list[Histogram]:
    """Every whole line of the file. Raises: DataError for a line that is no histogram."""
    *lines, _ = read_lines(path)  # what comes last is empty, or cut by a crash
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            rows.append(Histogram(row["step"], row["name"], row["low"], row["high"], tuple(row["counts"])))
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise DataError(
                "a file of histograms has a line that is none",
                where=f"{path}:{number}",
                given=line[:80],
                expected="an object with step, name, low, high, counts",
                fix="delete the line, or the file: it is written by training and only read by the report",
            ) from error
    return rows
