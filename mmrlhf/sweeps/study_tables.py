"""Tables of a study: numbers with their intervals, all columns as CSV and the readable ones as Markdown."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mmrlhf.metrics.intervals import Interval

_ENDS = ("", " low", " high")


def interval_columns(name: str, found: Interval | None) -> dict[str, str]:
    """A number and its interval as the columns `NAME`, `NAME low` and `NAME high`; empty where they are not known."""
    values = (None,) * 3 if found is None else found
    shown = ("" if value is None or np.isnan(value) else f"{value:.4f}" for value in values)
    return {f"{name}{end}": text for end, text in zip(_ENDS, shown, strict=True)}


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write the columns of all rows; a cell that a row lacks is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        heads = list(dict.fromkeys(name for row in rows for name in row))
        table = csv.DictWriter(file, heads, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def write_markdown(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write, and print, a table in which a number and its interval are one column; the first row says the columns."""
    heads = [name for name in rows[0] if not name.endswith(_ENDS[1:])]
    lines = [heads, ["---"] * len(heads), *([_cell(row, name) for name in heads] for row in rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    print(text)


def _cell(row: Mapping[str, object], name: str) -> str:
    """A number of three decimals with its interval, or a text as it is."""
    if f"{name} low" not in row or row[name] == "":
        return str(row[name])
    mean, low, high = (str(row[f"{name}{end}"]) for end in _ENDS)
    return f"{float(mean):.3f}" + (f" [{float(low):.3f}, {float(high):.3f}]" if low else "")
