"""Training curves as one CSV file with the columns `step,name,value`: only ever appended to, read back in one call.

Long instead of wide, because metrics come and go (validation, samples) and a wide file would have to be rewritten for
every new column.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mmrlhf.errors import DataError
from mmrlhf.files import read_lines

FILE_NAME = "curves.csv"
HEADER = ("step", "name", "value")


def read_curves(path: str | Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read a curve file, or the one in a folder: for every name its steps (n,) int64 and values (n,) float64.

    Where a step was logged twice the later value counts.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    curves: dict[str, dict[int, float]] = {}
    for step, name, value in read_rows(path):
        curves.setdefault(name, {})[step] = value
    return {
        name: (
            np.array(sorted(points), dtype=np.int64),
            np.array([points[step] for step in sorted(points)], dtype=np.float64),
        )
        for name, points in curves.items()
    }


def read_rows(path: Path) -> list[tuple[int, str, float]]:
    """Every whole line of a curve file as (step, name, value). Raises: DataError for a line that is something else."""
    *lines, _ = read_lines(path)  # what comes last is empty, or cut by a crash
    rows = []
    for number, row in enumerate(csv.reader(lines), start=1):
        if number == 1 and tuple(row) == HEADER:
            continue
        try:
            step, name, value = row
            rows.append((int(step), name, float(value)))
        except ValueError as error:
            raise DataError(
                "a curve file has a line that is not step,name,value",
                where=f"{path}:{number}",
                given=",".join(row),
                expected="an integer step, a name and a number",
                fix="delete the line, or the file: it is written by training and only read by the report",
            ) from error
    return rows
