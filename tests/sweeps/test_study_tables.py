"""A study's tables: a number and its interval are three columns of the CSV and one of the Markdown."""

from __future__ import annotations

import csv
from pathlib import Path

from mmrlhf.metrics.intervals import Interval
from mmrlhf.sweeps.study_tables import interval_columns, write_csv, write_markdown


def test_a_number_has_its_interval_in_both(tmp_path: Path) -> None:
    rows = [
        {"arm": "a", **interval_columns("gain", Interval(0.12344, 0.1, float("nan"))), "left": "x"},
        {"arm": "b", **interval_columns("gain", Interval(-0.5, -0.75, -0.25)), "more": 1},
        {"arm": "c", **interval_columns("gain", Interval(0.25, None, None)), "left": ""},
        {"arm": "d", **interval_columns("gain", None), "left": ""},
    ]
    write_csv(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["arm", "gain", "gain low", "gain high", "left", "more"]
    assert [row["gain"] for row in found] == ["0.1234", "-0.5000", "0.2500", ""] and found[1]["gain high"] == "-0.2500"
    assert found[0]["gain high"] == "" and [row["more"] for row in found] == ["", "1", "", ""]
    write_markdown(tmp_path / "t.md", [{k: v for k, v in row.items() if k not in ("left", "more")} for row in rows[1:]])
    assert (tmp_path / "t.md").read_text(encoding="utf-8").splitlines() == [
        "| arm | gain |", "| --- | --- |", "| b | -0.500 [-0.750, -0.250] |", "| c | 0.250 |", "| d |  |",
    ]  # fmt: skip
