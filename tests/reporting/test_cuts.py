"""What was cut and left out is one line, on the terminal and on the page."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from mmrlhf.chain.artifact import Artifact
from mmrlhf.errors import DataError
from mmrlhf.files import write_json
from mmrlhf.records.quarantine import Quarantine
from mmrlhf.reporting.cuts import cut_line
from mmrlhf.reporting.outcome import show_outcome
from mmrlhf.stages import report


def left_out() -> dict:
    quarantine = Quarantine(1200)
    for number in range(2):
        quarantine.add(f"k{number}", DataError("it is too long", where=f"key k{number}"))
    return quarantine.summary().to_json()


def test_every_count_has_its_words() -> None:
    assert cut_line({"queries": 5, "responses_shortened": 0.0, "quarantined": Quarantine(9).summary().to_json()}) == ""
    said = cut_line({"responses_shortened": 3.0, "critiques_cut": 1234.0, "quarantined": left_out()})
    assert said.startswith("3 responses were shortened, 1,234 critiques reached")
    assert said.endswith("2 of 1,200 queries were left out (2 x it is too long)")
    assert "7 answers" in cut_line({"num_cut_off": 7}) and "9 tokens" in cut_line({"truncated_tokens": 9})
    assert "4 times a pair" in cut_line({"equal_pairs": 4})
    curves = {"heldout": [{"n": 1, "labelled_by_model": 3}], "train": []}
    assert cut_line(curves) == "" and "9 tokens" in cut_line({**curves, "truncated_tokens": 9}), "of best_of_n"


def test_the_terminal_says_it_for_each_stage(tmp_path: Path) -> None:
    artifacts = [
        Artifact("score", "f", tmp_path, 1.0, {"responses_shortened": 3, "quarantined": left_out()}, False),
        Artifact("evaluate", "f", tmp_path, 1.0, {"num_cut_off": 7}, True),
        Artifact("report", "f", tmp_path, 1.0, {}, False),
    ]
    stream = io.StringIO()
    show_outcome(tmp_path, artifacts, console=Console(file=stream, width=400))
    lines = [line for line in stream.getvalue().splitlines() if line.startswith("cut ")]
    assert [line.split(":")[0].split()[-1] for line in lines] == ["score", "evaluate"]
    assert "3 responses were shortened" in lines[0]


def test_the_page_says_it_at_its_top(tmp_path: Path, runtime) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    write_json(reference / "metrics.json", {"responses_shortened": 3})
    report.run(tmp_path / "out", reference=reference, runtime=runtime)
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("reference: 3 responses were shortened") < page.index('<section id="policy">')
