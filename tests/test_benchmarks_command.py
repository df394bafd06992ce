"""The commands of docs/benchmarks.md, as a user types them."""

from __future__ import annotations

import json

import pytest
from stand_ins.commands import start

pytestmark = pytest.mark.slow
ORACLE = "{_target_: mmrlhf.suites.known_policies.Oracle, p: %s, style: %s}"
SUITE = ["logger=none", "suite=standins", "suite.tasks=[pope,mme,videomme]", "suite.limit=18", "inputs.policy=null"]


def test_a_table_of_oracles_and_two_runs_compared(tmp_path):
    before, after = ("suite.known_before=" + ORACLE % (0.3, "plain"), "suite.known_after=" + ORACLE % (0.9, "sentence"))
    told = start(tmp_path, "stage=report_benchmarks", *SUITE, "inputs.trained=null", before, after, expected=0)
    assert "POPE" in told and "hallucination" in told
    (page,) = tmp_path.glob("artifacts/report_benchmarks/*/benchmarks.html")
    found = json.loads((page.parent / "metrics.json").read_text())
    assert set(found["benchmarks"]) == {"pope", "mme", "videomme"} and found["overall"]["mean"] > 0.5
    assert found["benchmarks"]["pope"]["broken"] == 0 and found["benchmarks"]["pope"]["strict_after"] == 0
    one, two = tmp_path.glob("artifacts/suite_scores*/*/scores.jsonl")
    told = start(
        tmp_path, "stage=compare", "logger=none", f"inputs.a={one.parent}", f"inputs.b={two.parent}", expected=0
    )
    assert "Video-MME" in told


def test_a_benchmark_that_is_not_there_is_one_screen(tmp_path):
    told = start(
        tmp_path, "stage=suite_documents", "logger=none", "suite=lite", "suite.tasks=[pope,mmstar]", expected=2
    )
    assert "suite.folders={pope: DIR, mmstar: DIR}" in told.replace("\n", "").replace("  ", "")
