"""The section on rounds: one row a round, empty where a measure is not known."""

from __future__ import annotations

import csv
from pathlib import Path

from mmrlhf.reporting.outcome import rounds_table
from mmrlhf.reporting.round_section import MEASURES, read_rounds, rounds_section, write_rounds
from mmrlhf.summaries.evaluations import EvaluateSummary, Measure, ReportSummary
from mmrlhf.summaries.left_out import Quarantined


def evaluation(folder: Path, quality: float | None, reward: float) -> Path:
    true = None if quality is None else Measure(quality, quality - 0.1, quality + 0.1, 10, {})
    EvaluateSummary(
        queries=10, num_cut_off=0, quality=true, reward=Measure(reward, reward - 1, reward + 1, 10, {}), kl=None,
        kl_k3=None, length=None, cut_off=None, preference={}, temperature=0.0, max_new_tokens=8,
        quarantined=Quarantined(0, 10, 1, []),
    ).write(folder)  # fmt: skip
    return folder


def test_rounds_as_table_section_and_file(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    for number, folder in enumerate(folders):
        folder.mkdir()
        evaluation(folder, 0.2 + 0.1 * number if number else None, float(number))
    rows = read_rounds(folders[0], folders[1:])
    assert [row.round for row in rows] == [0, 1, 2]
    section = rounds_section(rows)
    assert section["measures"] == [MEASURES["quality"], MEASURES["reward"]]
    assert [len(row["values"]) for row in section["rows"]] == [2, 2, 2] and section["rows"][0]["values"][0] is None
    assert "<svg" in section["quality"] and "<svg" in section["reward"]
    write_rounds(tmp_path / "rounds.csv", rows)
    with (tmp_path / "rounds.csv").open() as file:
        found = list(csv.DictReader(file))
    assert found[0]["quality_mean"] == "" and float(found[2]["quality_mean"]) == 0.4
    table = rounds_table(ReportSummary(rounds=rows))
    assert table is not None and table.row_count == 3
    assert rounds_table(ReportSummary()) is None
