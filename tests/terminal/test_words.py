"""Every table and every message with hostile text on a real terminal: the characters arrive, and nothing obeys them."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console
from stand_ins import report_data

from mmrlhf.chain.artifact import Artifact
from mmrlhf.errors import DataError, Lines
from mmrlhf.reporting.outcome import chain_table, show_error, show_outcome
from mmrlhf.reporting.pack_table import pack_table
from mmrlhf.stages.rewardbench import table_on_terminal
from mmrlhf.stages.score_file import _table
from mmrlhf.summaries.datasets import PackSummary
from mmrlhf.sweeps.callback import map_table, results_table, show_sweep
from mmrlhf.sweeps.results import Estimate, Job, Metric, Point, Sweep
from mmrlhf.terminal.words import add_row, new_table, show
from mmrlhf.text import first_line, markdown_table, one_line
from mmrlhf.training.preview_table import show_previews

HOSTILE = [
    "[/INST]",
    "[/b]",
    "[x]",
    "[link=http://evil]here[/link]",
    "[red]r",
    ":smile:",
    "\\[",
    "\x1b[31mred",
    "\x1b]8;;http://e\x1b\\l",
]
HOSTILE += ["a\u202eb", "q\nz", "q\u2028z", "q\x85z", "bad\udcff", "tab\there", "\x9b5m"]
hostile = pytest.mark.parametrize("text", HOSTILE, ids=ascii)
# what our own styles may send: colours and weights, never a link or a movement
STYLES = re.compile(r"\x1b\[[\d;]*m")


def on_a_terminal(print_it: Callable[[Console], object]) -> str:
    """What a person sees; fails if anything but colours and weights is sent to the terminal."""
    out = io.StringIO()
    print_it(Console(file=out, force_terminal=True, width=400, color_system="truecolor", legacy_windows=False))
    seen = STYLES.sub("", out.getvalue())
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\ud800-\udfff]", seen), ascii(seen)
    return seen


def packed_with(text: str) -> PackSummary:
    return report_data.packed(categories={text: 1}, rejected_by_reason={f"reason {text}": 1})


def sweep_of(text: str, folder: Path) -> Sweep:
    jobs = tuple(Job(folder / str(n), {f"key{text}": text, "w": str(n)}, {"m": n / 2}) for n in range(2))
    failed = Job(folder / "2", {f"key{text}": text, "w": "2"}, failure=f"failed {text}")
    estimates = [{f"acc{text}": Estimate(n / 2, None, None, 1)} for n in range(2)]
    points = tuple(Point((text, str(n)), (jobs[n],), estimates[n]) for n in range(2))
    return Sweep(folder, (*jobs, failed), (f"key{text}", "w"), (Metric(f"acc{text}", "m"),), points)


@hostile
def test_tables_show_a_text_literally(text: str, tmp_path: Path) -> None:
    shown = one_line(text)
    row = {"id": text, "prompt": text, "responses": [{"text": text, "reward": 1.0}], "best": 0}
    artifact = Artifact(f"stage {text}", "f", tmp_path / "x", 1.0, {}, True)
    tables = {
        "score file": (_table([row]), 3),
        "pack": (pack_table(packed_with(text)), 2),
        "chain": (chain_table([artifact]), 1),
        "benchmark": (table_on_terminal([[f"scorer {text}", "a", "b"], [text, "1", "2"]]), 2),
        "own": (own_table(text), 3),
    }
    for name, (table, times) in tables.items():
        seen = on_a_terminal(lambda console, table=table: console.print(table))
        assert seen.count(shown) == times, name


def own_table(text: str) -> Any:
    table = new_table(f"heading {text}", title=f"title {text}")
    add_row(table, text)
    return table


@hostile
def test_messages_show_a_text_literally(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = one_line(text)
    error = DataError(f"bad {text}", where=f"x/{text}", given=text, expected=text, fix=Lines((text, text)))
    assert on_a_terminal(lambda console: show_error(error, console)).count(shown) == 6
    assert shown in on_a_terminal(lambda console: show_error(RuntimeError(f"first\nthen {one_line(text)}"), console))
    assert on_a_terminal(lambda console: show(text, console)) == shown + "\n"
    show_previews({"stage": f"not yet: {text}"})
    assert shown in capsys.readouterr().out


@hostile
def test_the_end_of_a_run_shows_names_literally(text: str, tmp_path: Path) -> None:
    artifact = Artifact("pack", "f", tmp_path / "x", 1.0, packed_with(text).to_json(), False)
    artifact.folder.mkdir()
    report_data.record(artifact.folder, "pack", 1.0, {"_target_": "mmrlhf.stages.pack.run"}, {})
    folder, commands = tmp_path / f"run {text}", [f"do {text}"]
    seen = on_a_terminal(lambda console: show_outcome(folder, [artifact], next_commands=commands, console=console))
    assert seen.count(one_line(text)) >= 3 and one_line(folder) in seen


@hostile
def test_a_sweep_shows_values_and_failures_literally(text: str, tmp_path: Path) -> None:
    sweep, shown = sweep_of(text, tmp_path), one_line(text)
    seen = on_a_terminal(lambda console: console.print(results_table(sweep)))
    assert seen.count(shown) == 4  # two headings, two points
    seen = on_a_terminal(lambda console: console.print(map_table(sweep, sweep.metrics[0])))
    assert seen.count(shown) == 3  # twice in the title, one row
    seen = on_a_terminal(lambda console: show_sweep(sweep, console))
    assert f"failed {first_line(text)}" in seen


def test_markdown_cells_stay_cells() -> None:
    """A category with a bar or a line break makes neither a new cell nor a new row."""
    assert markdown_table([["a|b", "c\nd"], ["1", "2"]]).split("\n") == [
        "| a\\|b | c d |",
        "| --- | --- |",
        "| 1 | 2 |",
        "",
    ]


@given(st.text(max_size=30))
@example("[/]")
def test_any_text_in_a_cell(text: str) -> None:
    assert on_a_terminal(lambda console: console.print(own_table(text))).count("│") == 2 + 2 * text.count("│")
