"""Many categories on one page: the common ones in plots, all of them in a table that folds, and in a CSV beside it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmrlhf.reporting.plots import Interval

CATEGORIES = "categories.csv"  # templates/macros.html.j2 names it
MOST_SHOWN = 12  # templates/macros.html.j2 has the same
Row = Mapping[str, Any]


def common(counts: Mapping[str, float]) -> list[str]:
    """Names of the categories to plot, by name: all of them, or where there are too many the largest."""
    return sorted(sorted(counts, key=lambda name: (-counts[name], name))[:MOST_SHOWN])


def largest_first(rows: Sequence[Row], count: str) -> list[Row]:
    """Rows of categories (`name`, and their size under `count`) by name; largest first where a table will fold."""
    by_name = sorted(rows, key=lambda row: row["name"])
    return by_name if len(rows) <= MOST_SHOWN else sorted(by_name, key=lambda row: -(row[count] or 0))


def gathered(counts: Mapping[str, Sequence[int]]) -> dict[str, Sequence[int]]:
    """Counts over the same bins by category, with those that are not `common` added up under one name."""
    kept = common({name: sum(own) for name, own in counts.items()})
    rest = [own for name, own in counts.items() if name not in set(kept)]
    shown: dict[str, Sequence[int]] = {name: counts[name] for name in kept}
    if rest:
        shown[f"{len(rest)} rarer ones"] = [sum(column) for column in zip(*rest, strict=True)]
    return shown


def write_categories(path: Path, tables: Mapping[str, Sequence[Row]]) -> None:
    """Write every row of every table: table, category, measure, value, low, high (empty where there is none)."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["table", "category", "measure", "value", "low", "high"])
        for table, rows in tables.items():
            for row in rows:
                for measure, value in row.items():
                    if isinstance(value, Interval):
                        writer.writerow([table, row["name"], measure, value.value, value.low, value.high])
                    elif measure != "name" and value is not None:
                        writer.writerow([table, row["name"], measure, value, "", ""])
