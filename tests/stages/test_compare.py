"""Stage `compare`: what is compared, what is left out and counted, and what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mmrlhf.errors import DataError
from mmrlhf.stages import compare
from mmrlhf.suites.comparison import compare as pairwise
from mmrlhf.suites.document_scores import Result, read_results, write_results
from mmrlhf.suites.published import published, with_published
from mmrlhf.suites.table import comparison_rows
from mmrlhf.summaries.suites import SuiteComparison


def results(task: str, scores: list[float | None], *, per_picture: int = 1, title: str = "") -> list[Result]:
    return [
        Result(
            task, str(n), title or task, "chart", f"digest {n}", f"picture {n // per_picture}", "question", "yes",
            score=score, strict=score, parsed=True, words=n % 3, reason="" if score is not None else "no verdict",
        )
        for n, score in enumerate(scores)
    ]  # fmt: skip


def written(folder: Path, found: list[Result]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder, found)
    return folder


def test_the_numbers_of_a_table_by_hand(tmp_path, runtime, capsys):
    """Four pictures with two documents; two fixed, one broken: (2 - 1) / 8."""
    before, after = [0, 0, 0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1, 0, 0]
    a = written(tmp_path / "a", results("pope", before, per_picture=2))
    b = written(tmp_path / "b", results("pope", after, per_picture=2))
    summary = compare.run(tmp_path / "out", a=a, b=b, runtime=runtime)
    row = summary["benchmarks"]["pope"]
    assert (row["documents"], row["pictures"], row["fixed"], row["broken"]) == (8, 4, 2, 1)
    assert row["difference"]["mean"] == pytest.approx(1 / 8) and row["before"]["mean"] == pytest.approx(3 / 8)
    # clusters' sums are 2, -1, 0, 0: of four signs, all reach |1|
    assert row["p"] == row["p_holm"] == 1.0
    assert row["difference"]["low"] < 0 < row["difference"]["high"]
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert SuiteComparison.from_json(stored, where="here").to_json() == summary
    text = (tmp_path / "out" / "benchmarks.md").read_text()
    assert "| chart | pope | 8 | 4 | 0.375 | 0.500 | +0.125 [" in text
    assert "pope" in capsys.readouterr().out


def test_documents_that_are_not_the_same_enter_nothing(tmp_path, runtime):
    old, new = results("pope", [0, 0, 1, None, 1]), results("pope", [1, 1, 1, 1, None])
    new[1] = replace(new[1], digest="another")
    new.append(replace(new[0], document="99"))
    a, b = written(tmp_path / "a", [*old, *results("gone", [1])]), written(tmp_path / "b", [*new, *results("new", [1])])
    summary = compare.run(tmp_path / "out", a=a, b=b, runtime=runtime)
    row = summary["benchmarks"]["pope"]
    assert row["documents"] == 2 and row["after"]["mean"] == 1.0 and row["before"]["mean"] == 0.5
    assert row["left_out"] == {
        "another picture, prompt or right answer": 1, "no verdict": 2, "only the second run has it": 1,
    }  # fmt: skip
    assert summary["uncompared"] == {"gone": "1 x only the first run has it", "new": "1 x only the second run has it"}
    assert "not compared: 1 x only the first run has it" in (tmp_path / "out" / "benchmarks.md").read_text()


def test_holm_counts_the_whole_table(tmp_path, runtime):
    better = ([0.0] * 12, [1.0] * 10 + [0.0] * 2)
    a = [row for n in range(5) for row in results(f"task{n}", better[0])]
    b = [row for n in range(5) for row in results(f"task{n}", better[1] if n == 0 else better[0])]
    summary = compare.run(tmp_path / "o", a=written(tmp_path / "a", a), b=written(tmp_path / "b", b), runtime=runtime)
    first = summary["benchmarks"]["task0"]
    assert first["p"] == pytest.approx(2 / 2**10) and first["p_holm"] == pytest.approx(5 * 2 / 2**10)
    assert summary["benchmarks"]["task1"]["p_holm"] == 1.0
    assert summary["dimensions"]["chart"]["benchmarks"] == 5


def test_nothing_in_common_is_said(tmp_path, runtime):
    a, b = written(tmp_path / "a", results("x", [1])), written(tmp_path / "b", results("y", [1]))
    with pytest.raises(DataError, match="no scored document in common") as caught:
        compare.run(tmp_path / "out", a=a, b=b, runtime=runtime)
    assert "x: 1 x only the first run has it" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": "high"}, "score and reason|score"),
        ({"score": None}, "score and reason"),
        ({"score": float("nan")}, "score and reason"),
        ({"words": True}, "words"),
        ({"surprise": 1}, "no result"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, change, said):
    row = {**asdict(results("x", [1.0])[0]), **change}
    (tmp_path / "scores.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"scores.jsonl:1") as caught:
        read_results(tmp_path)
    assert any(word in str(caught.value) for word in said.split("|"))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no scores of benchmarks"):
        read_results(tmp_path)
    twice = results("x", [1.0]) * 2
    write_results(tmp_path, twice)
    with pytest.raises(DataError, match="there twice"):
        read_results(tmp_path)
    (tmp_path / "scores.jsonl").write_text('{"task": \n')
    with pytest.raises(DataError, match="no JSON"):
        read_results(tmp_path)
    (tmp_path / "scores.jsonl").write_text('{"task": "x"}\n')
    with pytest.raises(DataError, match="lacks a field"):
        read_results(tmp_path)


def test_the_papers_numbers_stand_beside_ours_with_a_warning(tmp_path):
    """It states one row of its table in its text, and says nothing of the others here."""
    old, new = ([*results("mmerealworld", marks), *results("pope", marks)] for marks in ([0, 1], [1, 1]))
    found = with_published(pairwise(old, new))
    row, other = found.benchmarks["mmerealworld"], found.benchmarks["pope"]
    assert (row.published_before, row.published_after) == (48.4, 47.0) and row.published_note == "other harness"
    assert other.published_before is None and "48.4 -> 47 (other harness)" in comparison_rows(found)[1]
    assert published()["dimensions"] == {"conversation": 19.5, "safety": 60.0}
    assert SuiteComparison.from_json(found.to_json(), where="here") == found
