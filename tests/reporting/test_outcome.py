"""What the terminal shows at the end of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from mmrlhf.chain.artifact import Artifact
from mmrlhf.errors import UserError
from mmrlhf.reporting.outcome import (
    chain_table,
    record_failure,
    record_outcome,
    results_table,
    show_error,
    show_outcome,
)
from mmrlhf.reporting.sections import missing
from mmrlhf.summaries.evaluations import ReportSummary
from mmrlhf.summaries.rankings import Estimate


def test_results_come_with_their_intervals() -> None:
    """Only what the report found is shown, and an interval only where there is one."""
    table = results_table(ReportSummary(quality_gain=Estimate(0.05, 0.01, 0.09), kl_after=2.0))
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table)
    text = captured.get()
    assert "0.050" in text and "0.010 to 0.090" in text and "2.000" in text and "ACC" not in text


def test_the_table_shows_every_stage(tmp_path: Path) -> None:
    console = Console(record=True, width=100, file=(tmp_path / "screen").open("w"))
    console.print(
        chain_table([Artifact("pack", "f", tmp_path, 3.0, {}, True), Artifact("sft", "g", tmp_path, 90, {}, False)])
    )
    text = console.export_text()
    console.file.close()
    assert "reused" in text and "built" in text and "1 min 30 s" in text


def test_no_report_no_table() -> None:
    """A stage without results prints nothing."""
    assert results_table(ReportSummary()) is None


def test_paths_are_relative_only_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed can be pasted: no path climbs out of the working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    console = Console(width=60)
    for folder, shown in (
        (Path("outputs/1"), "results  outputs/1\n"),
        (tmp_path / "else", f"results  {tmp_path}/else\n"),
    ):
        record_outcome(folder, [], {})
        with console.capture() as captured:
            show_outcome(folder, [], console=console)
        assert shown in captured.get() and ".." not in captured.get()


def test_a_folder_says_how_the_last_try_ended(tmp_path: Path) -> None:
    """A second try in the same folder leaves either numbers or a failure, never both."""
    record_failure(tmp_path, ValueError("no"))
    assert (tmp_path / "failure.json").exists()
    record_outcome(tmp_path, [], {})
    assert (tmp_path / "metrics.json").exists() and not (tmp_path / "failure.json").exists()
    record_failure(tmp_path, ValueError("no"))
    assert not (tmp_path / "metrics.json").exists() and (tmp_path / "failure.json").exists()


@pytest.mark.parametrize(
    ("started", "shown"),
    [("/usr/bin/mmrlhf", "mmrlhf settings"), ("/of/mmrlhf/__main__.py", "python -m mmrlhf settings")],
)
def test_what_to_type_begins_as_the_command_did(started: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no run.py, no hint names it."""
    monkeypatch.setattr("sys.argv", [started])
    console = Console(width=100)
    with console.capture() as captured:
        show_error(UserError("no such setting", fix="`python run.py settings` lists them"), console)
    assert f"`{shown}` lists them" in captured.get()
    assert missing("nothing", "python run.py settings")["command"] == shown
