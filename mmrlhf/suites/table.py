"""Two models over a suite as tables: for the terminal, as Markdown, and as plain rows for pages and W&B."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mmrlhf.summaries.rankings import Estimate
from mmrlhf.summaries.suites import Paired, SuiteComparison
from mmrlhf.terminal.words import add_row, new_table, show
from mmrlhf.text import markdown_table

TABLE_FILE = "benchmarks.md"
HEADINGS = (
    "dimension", "benchmark", "documents", "pictures", "before", "after", "difference", "Holm p", "fixed", "broken",
    "detectable", "strict", "in form", "words", "left out", "published",
)  # fmt: skip
_SHORT = (1, 2, 4, 5, 6, 7)


def comparison_rows(found: SuiteComparison) -> list[list[str]]:
    """Rows of text, heading first: scores with 95% intervals over pictures, differences in the same unit."""
    rows: list[list[str]] = [[*HEADINGS]]
    rows += [_row(row) for row in found.benchmarks.values()]
    empty = [""] * (len(HEADINGS) - 3)
    return rows + [["", task, f"not compared: {why}", *empty] for task, why in found.uncompared.items()]


def _row(row: Paired) -> list[str]:
    lost = sum(row.left_out.values())
    return [
        row.dimension,
        row.title,
        str(row.documents),
        str(row.pictures),
        number(row.before.mean),
        number(row.after.mean),
        with_interval(row.difference, sign="+"),
        f"{row.p_holm:.3f}" if row.p_holm >= 0.001 else "<.001",
        str(row.fixed),
        str(row.broken),
        number(row.detectable),
        _change(row.strict_before, row.strict_after),
        _change(row.parsed_before, row.parsed_after),
        f"{row.words_before:.1f} -> {row.words_after:.1f}",
        f"{lost} ({', '.join(row.left_out)})" if lost else "0",
        published(row),
    ]


def published(row: Paired) -> str:
    """The paper's numbers, and where they are of another prompt or scoring."""
    if row.published_before is None or row.published_after is None:
        return ""
    return f"{row.published_before:g} -> {row.published_after:g}" + (
        f" ({row.published_note})" * bool(row.published_note)
    )


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{number(before)} -> {number(after)}"


def number(value: float) -> str:
    """Three digits behind the point, for scores of any scale."""
    return f"{value:.3f}"


def with_interval(found: Estimate, *, sign: str = "") -> str:
    """A number and, where it has one, its interval."""
    if found.low is None or found.high is None:
        return format(found.mean, f"{sign}.3f")
    mean, low, high = (format(value, f"{sign}.3f") for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def dimension_rows(found: SuiteComparison) -> list[list[str]]:
    """Rows of text, heading first: a dimension's mean standardised difference."""
    rows = [["dimension", "benchmarks", "standardised difference"]]
    for name, row in found.dimensions.items():
        rows.append([name, str(row.benchmarks), with_interval(row.standardised, sign="+") if row.standardised else ""])
    if found.overall is not None:
        rows.append(["all", str(len(found.benchmarks)), with_interval(found.overall, sign="+")])
    return rows


def source_rows(found: SuiteComparison) -> list[list[str]]:
    """Rows of text, heading first: where each benchmark's questions are from, and those that could not be read."""
    rows = [["benchmark", "data", "split", "commit", "scored by"]]
    for task, source in (found.sources or {}).items():
        title = found.benchmarks[task].title if task in found.benchmarks else task
        commit = f"{source.revision or 'not known'} ({source.chosen})" if source.chosen else ""
        version = f", task version {source.task_version}" if source.task_version else ""
        rows.append([title, source.data, source.split, commit, (source.program or "mmrlhf") + version])
    return rows + [[task, f"not there: {why}", "", "", ""] for task, why in (found.absent or {}).items()]


def write_tables(out: Path, found: SuiteComparison) -> None:
    """Write all tables to `out/benchmarks.md`, and show what of them fits on the terminal."""
    rows, dimensions, sources = comparison_rows(found), dimension_rows(found), source_rows(found)
    tables = [rows, dimensions, *([sources] if len(sources) > 1 else [])]
    (out / TABLE_FILE).write_text("\n".join(map(markdown_table, tables)), encoding="utf-8")
    show(on_terminal(rows, title=f"differences with 95% intervals over pictures; all columns: {TABLE_FILE}"))
    show(on_terminal(dimensions, title="dimensions"))


def on_terminal(rows: Sequence[Sequence[str]], *, title: str) -> Table:
    """The columns that fit on a terminal."""
    heading = rows[0]
    places = _SHORT if len(heading) > len(_SHORT) else range(len(heading))
    table = new_table(*(heading[place] for place in places), title=title)
    for row in rows[1:]:
        add_row(table, *(row[place] for place in places))
    return table
