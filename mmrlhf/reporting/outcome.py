"""What a run leaves in its own folder, and what it says on the terminal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from mmrlhf.chain.artifact import Artifact
from mmrlhf.chain.forecast import Forecast
from mmrlhf.chain.provenance import as_started, git_commit, versions
from mmrlhf.errors import UserError
from mmrlhf.files import hide_credentials, short_path, write_json
from mmrlhf.parts import ARTIFACT_FILE
from mmrlhf.reporting.cuts import cut_line
from mmrlhf.summaries.datasets import PackSummary
from mmrlhf.summaries.evaluations import ReportSummary
from mmrlhf.summaries.kinds import kind_of
from mmrlhf.summaries.rankings import Estimate
from mmrlhf.summaries.summary import METRICS_FILE
from mmrlhf.terminal.lines import duration
from mmrlhf.terminal.words import add_row, error_panel, new_table, show
from mmrlhf.trees import plain

FAILURE_FILE, REPORT_FILE = "failure.json", "report.html"
STAGES_FILE, RESULTS_FILE = "stages.json", "results.jsonl"
_COPIED = (".html", ".png", ".csv", ".md")


def record_outcome(
    folder: Path, artifacts: Sequence[Artifact], settings: Mapping[str, Any], *, command: str = ""
) -> None:
    """Write into a run's folder what determined it and what came out.

    `resolved.yaml` (settings), `versions.json` (command, commit, libraries), `metrics.json` (every stage's summary),
    `stages.json` (what was built and what was reused, in how many seconds), `artifacts/<stage>` (links to the
    artefacts), and copies of the last stage's report and pictures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    known = hide_credentials(plain(settings))
    (folder / "resolved.yaml").write_text(yaml.safe_dump(known, sort_keys=False, allow_unicode=True), encoding="utf-8")
    write_json(folder / "versions.json", {"command": command, "git": git_commit(), "versions": versions()})
    write_json(folder / METRICS_FILE, hide_credentials({artifact.stage: artifact.summary for artifact in artifacts}))
    write_json(
        folder / STAGES_FILE,
        {
            item.stage: {"reused": item.reused, "seconds": item.seconds, "folder": str(item.folder)}
            for item in artifacts
        },
    )
    (folder / FAILURE_FILE).unlink(missing_ok=True)  # of an earlier try in the same folder
    links = folder / "artifacts"
    links.mkdir(exist_ok=True)
    for artifact in artifacts:
        _link(artifact.folder, links / artifact.stage)
    if artifacts:
        for item in sorted(artifacts[-1].folder.iterdir()):
            if item.suffix in _COPIED and item.is_file():
                shutil.copy2(item, folder / item.name)


def record_failure(folder: Path, error: Exception) -> None:
    """Write into a job's folder why it failed, for the table of its sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / METRICS_FILE).unlink(missing_ok=True)
    write_json(folder / FAILURE_FILE, {"kind": type(error).__name__, "message": hide_credentials(str(error))})


def _link(target: Path, link: Path) -> None:
    if link.is_symlink():
        link.unlink()
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:  # some file systems have no links
        link.with_suffix(".txt").write_text(f"{target}\n", encoding="utf-8")


def results_table(found: ReportSummary) -> Table | None:
    """What a report found on held-out queries, with 95% intervals where it has them; None if it found nothing."""
    rows = (
        ("reward model ACC, annotators' ranks", found.reward_acc_annotators),
        ("reward model ACC+, annotators' ranks", found.reward_acc_plus_annotators),
        ("reward model ACC, true quality", found.reward_acc_truth),
        ("reward model ACC+, true quality", found.reward_acc_plus_truth),
        ("true quality of answers before", found.quality_before),
        (f"true quality of the best of {found.best_of} before, by reward", found.quality_best_of),
        ("true quality of answers after", found.quality_after),
        ("gain in true quality, paired", found.quality_gain),
        ("reward of answers before", found.reward_before),
        (f"reward of the best of {found.best_of} before", found.reward_best_of),
        ("reward of answers after", found.reward_after),
        ("KL to the reference after (nats per answer)", found.kl_after),
        ("mean beta", found.beta_mean),
    )
    table = new_table("held-out queries", "", "95% interval", title="results")
    for label, value in rows:
        if value is not None:
            whole = value if isinstance(value, Estimate) else Estimate(value, None, None)
            ends = f"{whole.low:.3f} to {whole.high:.3f}" if whole.low is not None and whole.high is not None else ""
            add_row(table, label, f"{whole.mean:.3f}", ends)
    return table if table.row_count else None


def findings_table(found: ReportSummary) -> Table | None:
    """The signs of failure that a run shows, with what to do; None where it shows none."""
    table = new_table("sign", "what was seen", "what to do", title="diagnosis", fold=True)
    for finding in found.findings or ():
        if finding.seen:
            add_row(table, finding.sign, finding.saw, finding.advice)
    return table if table.row_count else None


def rounds_table(found: ReportSummary) -> Table | None:
    """What every round of self-improvement left on held-out queries; None for a run without rounds."""
    rows = [(row.round, row.measures()) for row in found.rounds or ()]
    if not rows:
        return None
    names = [name for name in rows[0][1] if any(known[name] for _, known in rows)]
    table = new_table("after round", *names, title="rounds (95% interval)")
    for turn, known in rows:
        add_row(table, str(turn or "start"), *(_in_words(known[name]) for name in names))
    return table


def _in_words(found: Estimate | None) -> str:
    """A number with its interval where it has one; empty for None."""
    if not found:
        return ""
    ends = f" ({found.low:.3f} to {found.high:.3f})" if found.low is not None else ""
    return f"{found.mean:.3f}{ends}"


def show_outcome(
    folder: Path, artifacts: Sequence[Artifact], *, next_commands: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print the chain, what the report found, where the results are, and what could be run next."""
    console = console or Console()
    show(chain_table(artifacts), console)
    for table in _tables(artifacts[-1]) if artifacts else ():
        show(table, console)
    for artifact in artifacts:
        lost = cut_line(artifact.summary)
        if lost:
            show(f"cut      {artifact.stage}: {lost}", console)
    report = folder / REPORT_FILE
    show(f"results  {short_path(folder)}", console)
    if report.exists():
        show(f"report   {short_path(report)}", console)
    scores = artifacts[-1].folder / RESULTS_FILE if artifacts else None
    if scores is not None and scores.exists():  # only here has the stage's folder its final name
        show(f"scores   {short_path(scores)}", console)
    for number, command in enumerate(next_commands):
        show(f"{'next' if number == 0 else '':8} {command}", console)


def _tables(artifact: Artifact) -> list[Table]:
    """What the last stage found, if it is one whose findings have tables."""
    record = artifact.folder / ARTIFACT_FILE
    settings = json.loads(record.read_text(encoding="utf-8"))["settings"] if record.is_file() else {}
    kind = kind_of(str(settings.get("_target_", "")))
    found = kind.from_json(artifact.summary, where=record) if kind in (ReportSummary, PackSummary) else None
    if isinstance(found, PackSummary):
        from mmrlhf.reporting.pack_table import (
            pack_table,  # takes seconds to import; a command that shows help must not
        )

        return [pack_table(found)]
    tables = (
        (results_table(found), rounds_table(found), findings_table(found)) if isinstance(found, ReportSummary) else ()
    )
    return [table for table in tables if table is not None]


def show_error(error: Exception, console: Console | None = None) -> None:
    """Print a mistake of the user's as one screen, without a traceback; commands to type begin as this one did."""
    if isinstance(error, UserError) and isinstance(error.fix, str):
        error.fix = as_started(error.fix)
    show(error_panel(error), console or Console(stderr=True))


def show_forecast(forecasts: Sequence[Forecast], console: Console | None = None) -> None:
    """Print what a command would do, stage by stage, and what that would take."""
    title = "what would happen (times are of earlier builds)"
    table = new_table("stage", "", "time", "why", title=title, right=("time",), fold=True)
    for item in forecasts:
        taken = "" if item.reused else "unknown" if item.seconds is None else duration(item.seconds)
        add_row(table, item.stage, "reused" if item.reused else "built", taken, item.why)
    show(table, console)
    built = [item for item in forecasts if not item.reused]
    known = [item.seconds for item in built if item.seconds is not None]
    new = len(built) - len(known)
    parts = [f"about {duration(sum(known))}"] if known else []
    parts += [f"{new} of unknown time"] if new else []
    times = f": {', '.join(parts)}" if parts else ""
    show(f"{len(built)} of {len(forecasts)} stages would be built{times}", console)


def chain_table(artifacts: Iterable[Artifact]) -> Table:
    """Show a chain of stages on the terminal: what was built, what was reused, how long it took, where it lies."""
    table = new_table("stage", "", "time", "folder", title="stages", right=("time",), fold=True)
    for artifact in artifacts:
        state = "reused" if artifact.reused else "built"
        add_row(table, artifact.stage, state, duration(artifact.seconds), short_path(artifact.folder))
    return table
