"""The end of a sweep: a table and a map on the terminal, sweep.csv, and one page with everything."""

from __future__ import annotations

import csv
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from mmrlhf.chain.shares import job_shares
from mmrlhf.errors import ConfigError
from mmrlhf.files import short_path
from mmrlhf.processes import Group
from mmrlhf.reporting.outcome import show_error
from mmrlhf.sweeps.results import Metric, Sweep, read_sweep, varying
from mmrlhf.terminal.words import add_row, literal, new_table, show

log = logging.getLogger(__name__)

PAGE, TABLE = "sweep.html", "sweep.csv"
# the sweep that this process has started and not collected yet; Hydra keeps the callback itself out of reach
_under_way: list[tuple[Path, list[Metric]]] = []


class SweepReport(Callback):
    """Collects a sweep's results when all of its jobs are done; exit code 1 if any of them failed.

    Args:
        metrics: numbers to show, name -> {path: `stage/name`, better: high | low}; those that no job has are left out,
            the first decides which point is best.
    """

    def __init__(self, metrics: Mapping[str, Mapping[str, Any]]) -> None:
        self.metrics = dict(metrics)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Refuse what cannot work before the first job: Hydra would go on after an exception of a callback's."""
        try:
            metrics = make_metrics(self.metrics)
            if Group.from_environment().size > 1:
                raise ConfigError(
                    "a sweep was started as a group of processes",
                    given=f"{Group.from_environment().size} processes",
                    expected="one process: every job starts its own",
                    fix="leave torchrun or srun away and add trainer.devices=N; on a cluster, launcher=slurm",
                )
            job_shares(config.hydra.get("launcher", {}), config.get("trainer", {}))
        except ConfigError as error:
            show_error(error)
            sys.exit(2)
        _under_way[:] = [(Path(config.hydra.sweep.dir), metrics)]

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write sweep.csv and the page beside the jobs, and print the table."""
        _under_way.clear()
        looks_only = config.get("dry") is True or config.get("plan") is True
        sweep = read_sweep(Path(config.hydra.sweep.dir), make_metrics(self.metrics), expects_numbers=not looks_only)
        if looks_only:
            _show_failures(sweep, Console())
        else:
            show_sweep(sweep)
        if sweep.failed:
            sys.exit(1)


def collect_lost(error: Exception) -> bool:
    """Show what is there of a sweep whose launcher gave up, as it does when a job is killed from outside.

    Returns False where no sweep was under way.
    """
    if not _under_way:
        return False
    folder, metrics = _under_way.pop()
    show_error(RuntimeError(f"the launcher stopped before all jobs had ended: {error}"))
    if folder.is_dir():
        show_sweep(read_sweep(folder, metrics))
    return True


def make_metrics(settings: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Make the metrics that a config describes; raises ConfigError for a path or a direction that cannot be."""
    metrics = []
    for name, item in settings.items():
        if not isinstance(item, Mapping) or "path" not in item or set(item) - {"path", "better"}:
            raise ConfigError(
                "not a metric", where=f"sweep_metrics.{name}", given=item, expected="{path: stage/name, better: high}"
            )
        metrics.append(Metric(str(name), str(item["path"]), item.get("better", "high")))
    return metrics


def show_sweep(sweep: Sweep, console: Console | None = None) -> None:
    """Write a sweep's table and page into its folder, and print what it found, what failed and where things are."""
    console = console or Console()
    write_csv(sweep.folder / TABLE, sweep)
    written = [("results", sweep.folder / TABLE)]
    if sweep.points:
        from mmrlhf.sweeps.page import write_page  # Hydra loads this file for every run, and the page takes seconds

        write_page(sweep, sweep.folder / PAGE)
        written.append(("report", sweep.folder / PAGE))
    show(results_table(sweep), console)
    for metric in sweep.metrics[:1]:
        table = map_table(sweep, metric)
        if table is not None:
            show(table, console)
        point = sweep.best(metric)
        if point is not None and sweep.settings:
            show(f"best     {sweep.describe(point)}: {metric.name} {point.estimates[metric.name]}", console)
            equals = sum(item.estimates.get(metric.name) == point.estimates[metric.name] for item in sweep.points) - 1
            if equals:
                show(f"         {equals} other point{'s' * (equals > 1)} the same", console)
    _show_failures(sweep, console)
    for label, path in written:
        show(f"{label:8} {short_path(path)}", console)


def _show_failures(sweep: Sweep, console: Console) -> None:
    if sweep.failed:
        show("", console)
        show(f"{len(sweep.failed)} of {len(sweep.jobs)} jobs failed", console, style="bold red")
    for job in sweep.failed:
        where = " ".join(f"{key}={job.overrides.get(key, '')}" for key in varying(sweep.jobs))
        show(f"  {job.folder.name}: {where}", console)
        show(f"     {job.first_line}", console)
        show(f"     {short_path(job.folder / 'run.log')}", console)
    if sweep.failed:
        show("  the same command runs the failed jobs again and reuses the others", console)
        show("", console)


def write_csv(path: Path, sweep: Sweep) -> None:
    """Write one row per job: number, varying settings, all numbers, failure."""
    settings = varying(sweep.jobs)
    metrics = sorted({name for job in sweep.jobs for name in job.metrics})
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["job", *settings, *metrics, "failure"])
        for job in sweep.jobs:
            row = [job.overrides.get(key, "") for key in settings] + [job.metrics.get(name, "") for name in metrics]
            writer.writerow([job.folder.name, *row, job.failure or ""])


def results_table(sweep: Sweep) -> Table:
    """Show every point with its numbers and 95% intervals, and how its jobs went."""
    jobs = sweep.jobs
    reused = sum(job.reused for job in jobs)
    title = f"sweep: {len(jobs)} jobs" + (f", {reused} of them were there already" if reused else "")
    table = new_table(*sweep.labels, *[metric.name for metric in sweep.metrics], "jobs", title=title)
    for point in sweep.points:
        numbers = [str(point.estimates.get(metric.name, "-")) for metric in sweep.metrics]
        failed = sum(job.failure is not None for job in point.jobs)
        state = f"{len(point.jobs) - failed} of {len(point.jobs)}" if failed else str(len(point.jobs))
        add_row(table, *point.values, *numbers, literal(state, "red" if failed else ""))
    return table


def map_table(sweep: Sweep, metric: Metric) -> Table | None:
    """Show a number over two settings, better cells greener; None unless exactly two vary."""
    axes = sweep.axes()
    known = [point.estimates[metric.name].mean for point in sweep.points if metric.name in point.estimates]
    if axes is None or not known:
        return None
    rows, columns = axes
    found = {point.values: point.estimates.get(metric.name) for point in sweep.points}
    low, span = min(known), max(known) - min(known)
    title = f"{metric.name} over {sweep.labels[0]} (down) and {sweep.labels[1]} (across)"
    table = new_table("", *columns, title=title)
    for row in rows:
        cells = []
        for column in columns:
            cell = found.get((row, column))
            share = 0.5 if cell is None or span == 0 else (cell.mean - low) / span
            shade = round(40 + 110 * (share if metric.better == "high" else 1 - share))
            cells.append("-" if cell is None else literal(cell, f"white on rgb(20,{shade},60)"))
        add_row(table, literal(row, "bold"), *cells)
    return table
