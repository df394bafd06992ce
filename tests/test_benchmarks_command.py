"""The commands of docs/benchmarks.md, as a user types them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from stand_ins.commands import PROJECT, environment, start

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


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, small_policy):
    """SIGKILL once a window of answers is there: the same command keeps it and answers the rest."""
    words = [
        "stage=suite_answers_before", "logger=none", "trainer=cpu", "suite=standins", "suite.limit=12",
        "suite.tasks=[pope,mme,mmstar,ai2d,videomme]", "suite.longest_answer=8", f"inputs.policy={small_policy}",
    ]  # fmt: skip
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    killed.mkdir()
    whole.mkdir()
    command = [sys.executable, str(PROJECT / "run.py"), *words, f"paths.artifacts={killed}/artifacts"]
    process = subprocess.Popen(command, cwd=killed, env=environment(), stdout=subprocess.DEVNULL)
    while not (parts := list(killed.glob("artifacts/suite_answers_before/*/parts/*.json"))) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    written = {part.name: part.stat().st_mtime_ns for part in parts}
    for folder in (killed, whole):
        start(folder, *words, f"paths.artifacts={folder}/artifacts", expected=0)
    texts = [next(folder.glob("artifacts/suite_answers_before/*/answers.jsonl")) for folder in (killed, whole)]
    assert texts[0].read_bytes() == texts[1].read_bytes() and len(texts[0].read_text().split("\n")) == 61
    kept = {part.name: part.stat().st_mtime_ns for part in texts[0].parent.glob("parts/*.json")}
    assert 0 < len(written) < len(kept) and written.items() <= kept.items()
