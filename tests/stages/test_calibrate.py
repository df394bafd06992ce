"""Stage `calibrate`: the numbers of anyone's scores, from any table, and the row that cannot be read by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmrlhf.errors import DataError
from mmrlhf.metrics.calibration import calibration_report
from mmrlhf.records.pair_scores import read_pair_scores
from mmrlhf.stages import calibrate
from mmrlhf.summaries.scores import CalibrateSummary


def rows(number: int = 200) -> list[dict[str, Any]]:
    """Scores whose margins are three times as large as they should be, 4 pairs a query."""
    draw = np.random.default_rng(0)
    size = np.abs(draw.normal(0, 1.5, number))
    margin = np.where(draw.random(number) < 1 / (1 + np.exp(-size)), size, -size) * 3
    return [
        {
            "group": f"q {i // 4}",
            "category": ["long", "a <b>"][i // 4 % 2],
            "score_chosen": 5 + float(gap),
            "score_rejected": 5,
        }
        for i, gap in enumerate(margin)
    ]


def write(path: Path, table: list[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(table))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table))
    return path


def test_the_numbers_are_those_of_the_margins_and_stand_on_the_page(tmp_path, runtime):
    table = rows()
    summary = calibrate.run(tmp_path / "out", scores=write(tmp_path / "mine.jsonl", table), runtime=runtime)
    gaps = [row["score_chosen"] - row["score_rejected"] for row in table]
    expected = calibration_report(gaps, [row["group"] for row in table])
    assert summary["calibration"] == json.loads(json.dumps(expected))
    assert summary["calibration"]["temperature"] == pytest.approx(3, abs=0.8)
    assert summary["calibration"]["nll_at_temperature"]["mean"] < summary["calibration"]["nll"]["mean"]
    assert (
        summary["accuracy"]["acc"]["mean"] == np.mean(np.array(gaps) > 0) and summary["accuracy"]["num_queries"] == 50
    )
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert CalibrateSummary.from_json(written, where="").to_json() == summary
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<svg") == 3 and f"{expected['ece']['mean']:.3f}" in page and "a &lt;b&gt;" in page
    assert "a <b>" not in page and "both orders" in page


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_every_table_says_the_same(tmp_path, suffix):
    table = rows(12)
    assert read_pair_scores(write(tmp_path / f"a{suffix}", table)) == read_pair_scores(
        write(tmp_path / "a.jsonl", table)
    )


def test_pairs_of_no_query_are_queries_of_their_own(tmp_path, runtime):
    table = [{"score_chosen": row["score_chosen"], "score_rejected": 5} for row in rows(40)]
    summary = calibrate.run(tmp_path / "out", scores=write(tmp_path / "a.csv", table), runtime=runtime)
    assert summary["accuracy"]["num_queries"] == 40 and set(summary["verdicts"]) == {"all pairs"}


def test_the_largest_scores_have_numbers_too(tmp_path, runtime):
    """Margins of 2e30 on either side: everything is a number, on the page and in metrics.json."""
    table = [
        {"group": f"q{i // 2}", "score_chosen": side, "score_rejected": -side}
        for i, side in enumerate([1e30, -1e30, 1e30, 1e30, 5.0, 1e-30])
    ]
    summary = calibrate.run(tmp_path / "out", scores=write(tmp_path / "large.jsonl", table), runtime=runtime)
    json.dumps(summary, allow_nan=False)
    assert summary["accuracy"]["acc"]["mean"] == pytest.approx(5 / 6)
    assert summary["calibration"]["nll"]["mean"] == pytest.approx(2e30 / 6)
    assert "nan" not in (tmp_path / "out" / "report.html").read_text().split("</style>")[1].lower().replace("lnan", "")


def test_rows_that_the_page_folds_are_in_the_table_that_it_names(tmp_path, runtime):
    table = [{**row, "category": f"kind {number % 20}"} for number, row in enumerate(rows(60))]
    summary = calibrate.run(tmp_path / "out", scores=write(tmp_path / "mine.jsonl", table), runtime=runtime)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "and 8 more" in page and "categories.csv" in page
    with (tmp_path / "out" / "categories.csv").open(newline="") as file:
        found = [row for row in csv.DictReader(file) if row["measure"] == "right"]
    assert {row["category"]: int(row["value"]) for row in found} == {
        name: own["right"] for name, own in summary["verdicts"].items()
    }
    assert len(found) == 20


@pytest.mark.parametrize(
    "value", [None, "", "high", float("nan"), "inf", True, [1], 10**400, -(10**400), 1e31, "1e308"]
)
@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_row_without_two_numbers_is_named(tmp_path, suffix, value):
    path = write(tmp_path / f"mine{suffix}", [*rows(2), {**rows(1)[0], "score_rejected": value}])
    if suffix == ".csv" and value is True:
        value = "True"
    with pytest.raises(DataError, match=r"mine(.|\n)*3(.|\n)*score_rejected|JSON"):
        calibrate.check_settings({"scores": str(path)})


def test_other_faults_say_what_is_expected(tmp_path):
    with pytest.raises(DataError, match="no such file(.|\n)*score_chosen"):
        calibrate.check_settings({"scores": str(tmp_path / "absent.csv")})
    (tmp_path / "empty.csv").write_text("score_chosen,score_rejected\n")
    with pytest.raises(DataError, match="without a row"):
        read_pair_scores(tmp_path / "empty.csv")
    mixed = rows(3)
    del mixed[1]["group"]
    with pytest.raises(DataError, match=r"pair 2(.|\n)*2 of 3 with a group"):
        read_pair_scores(write(tmp_path / "mixed.jsonl", mixed))
    (tmp_path / "bad.csv").write_bytes(b"score_chosen,score_rejected\n\xff,1\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_pair_scores(tmp_path / "bad.csv")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_category_may_be_zero_and_what_is_empty_is_not_named(tmp_path, suffix):
    table = [{"score_chosen": 1.0, "score_rejected": 0.0, "group": "", "category": number} for number in (0, 1, 0)]
    found = read_pair_scores(write(tmp_path / f"a{suffix}", table))
    assert found.categories == ("0", "1", "0") and found.groups == ("pair-1", "pair-2", "pair-3")
