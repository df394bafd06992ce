"""The page of a sweep: best point, every number over the settings, training curves, answers side by side, all jobs."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from mmrlhf.chain.order import replace_references
from mmrlhf.chain.provenance import reproduction, typed_command
from mmrlhf.errors import UserError
from mmrlhf.reporting import plots
from mmrlhf.reporting.inputs import open_shards, read_answers, read_stage
from mmrlhf.reporting.maps import heat_map, standalone, tradeoff
from mmrlhf.reporting.page_style import environment, style
from mmrlhf.reporting.sample_cards import find_group, picture_cards, read_pictures
from mmrlhf.shards.index import Index
from mmrlhf.summaries.curve_file import FILE_NAME as CURVE_FILE
from mmrlhf.summaries.curve_file import read_curves
from mmrlhf.sweeps.results import Estimate, Job, Metric, Point, Sweep, varying

log = logging.getLogger(__name__)

TRAINING_STAGES = ("mmdpo", "reward", "sft")
CURVES = ("loss", "accuracy", "reward_margin", "beta", "kl_estimate", "gradient_norm")
MOST_CURVES, MOST_POINTS = 9, 9
NUM_QUERIES = 4


def write_page(sweep: Sweep, out: Path) -> None:
    """Write a self-contained page to `out`, and beside it every map as `<metric>.svg`."""
    maps = {metric: _picture(sweep, metric) for metric in sweep.metrics} if sweep.settings else {}
    for metric, picture in maps.items():
        name = re.sub(r"\W+", "-", metric.name)
        out.with_name(f"{name}.svg").write_text(standalone(picture), encoding="utf-8", errors="backslashreplace")
    page = (
        environment()
        .get_template("sweep.html.j2")
        .render(
            title=f"Sweep over {' and '.join(sweep.labels)}" if sweep.settings else "Sweep",
            css=style(),
            sweep=sweep,
            cards=_cards(sweep),
            pictures=[*maps.values(), *_tradeoffs(sweep)],
            curves=_curves(sweep),
            samples=_samples(sweep),
            points=_rows(sweep),
            jobs=[_job(job, sweep, out.parent) for job in sweep.jobs],
            job_settings=varying(sweep.jobs),
            reproduce="\n".join(reproduction(typed_command())),
        )
    )
    out.write_text(page, encoding="utf-8", errors="backslashreplace")


def _cards(sweep: Sweep) -> list[dict[str, str]]:
    """The best point of every number."""
    cards = []
    for metric in sweep.metrics if sweep.settings else ():
        point = sweep.best(metric)
        if point is not None:
            label = f"{'highest' if metric.better == 'high' else 'lowest'} {metric.name}"
            estimate = point.estimates[metric.name]
            value, _, interval = str(estimate).partition(" ")
            cards.append({"label": label, "value": value, "interval": interval, "detail": sweep.describe(point)})
    return cards


def _picture(sweep: Sweep, metric: Metric) -> Markup:
    """A map over two settings, else one dot with its interval for every point."""
    best = sweep.best(metric)
    assert best is not None
    axes = sweep.axes()
    if axes is not None:
        return _map(sweep, metric, best, *axes)
    rows = []
    for point in sweep.points:
        if (found := point.estimates.get(metric.name)) is not None:
            strong = point is best
            rows.append(_interval(found, sweep.describe(point), group=int(strong), strong=strong))
    return plots.intervals(rows, label=metric.name)


def _map(sweep: Sweep, metric: Metric, best: Point, rows: list[str], columns: list[str]) -> Markup:
    grid = np.full((len(rows), len(columns)), np.nan)
    notes = {}
    for point in sweep.points:
        place = rows.index(point.values[0]), columns.index(point.values[1])
        if (found := point.estimates.get(metric.name)) is not None:
            grid[place] = found.mean
            notes[place] = str(found).partition(" ")[2]
    return heat_map(
        grid,
        rows,
        columns,
        labels=(sweep.labels[0], sweep.labels[1]),
        title=metric.name,
        best=(rows.index(best.values[0]), columns.index(best.values[1])),
        notes=notes,
        higher_is_better=metric.better == "high",
    )


def _tradeoffs(sweep: Sweep) -> list[Markup]:
    """The first number over each that should be low, such as quality over KL, one dot for every point."""
    if not sweep.settings or not sweep.metrics:
        return []
    first, pictures = sweep.metrics[0], []
    for metric in sweep.metrics[1:]:
        dots = [
            (sweep.describe(point), _interval(point.estimates[metric.name]), _interval(point.estimates[first.name]))
            for point in sweep.points
            if {metric.name, first.name} <= set(point.estimates)
        ]
        if metric.better == "low" and dots:
            pictures.append(tradeoff(dots, x_label=metric.name, y_label=first.name))
    return pictures


def _interval(found: Estimate, label: str = "", **look: Any) -> plots.Interval:
    """An estimate as a dot; without an interval of its own it ends where it starts."""
    low, high = (found.mean, found.mean) if found.low is None or found.high is None else (found.low, found.high)
    return plots.Interval(label, found.mean, low, high, **look)


def _curves(sweep: Sweep) -> list[Markup]:
    """Training curves of the first job of each point, one panel for each number."""
    found = {}
    for point in sweep.points[:MOST_CURVES]:
        for job in point.jobs:
            folder = next((place for name in TRAINING_STAGES if (place := _artifact(job, name)) is not None), None)
            if folder is not None and (folder / CURVE_FILE).is_file():
                found[sweep.describe(point) or job.folder.name] = read_curves(folder)
                break
    panels = []
    for name in CURVES:
        series = {point: curves[f"train/{name}"] for point, curves in found.items() if f"train/{name}" in curves}
        if series:
            panels.append(plots.training_curves(series, title=name, legend=not panels))
    return panels


def _artifact(job: Job, stage: str) -> Path | None:
    folder = job.folder / "artifacts" / stage
    return folder if folder.is_dir() else None


def _samples(sweep: Sweep) -> list[dict[str, Any]]:
    """What every point answers to the same held-out queries, with their pictures."""
    answers = []
    for point in sweep.points[:MOST_POINTS]:
        job = next((job for job in point.jobs if _artifact(job, "evaluate")), None)
        rows = read_answers(read_stage("evaluate", _artifact(job, "evaluate"))) if job is not None else {}
        if job is not None and rows:
            answers.append((point, job, rows))
    if not answers:
        return []
    keys = [key for key in answers[0][2] if all(key in rows for _, _, rows in answers)]
    index = next((found for _, job, _ in answers if (found := _shards(job)) is not None), None)
    return [_sample(sweep, key, answers, index) for key in keys[:NUM_QUERIES]]


def _shards(job: Job) -> Index | None:
    """The queries that a job's policy answered: whichever stage, folder or address `evaluate` read them from."""
    evaluated = read_stage("evaluate", _artifact(job, "evaluate"))
    settings = evaluated.record.get("settings", {}) if evaluated is not None else {}
    artifacts = job.folder / "artifacts"
    place = replace_references(settings.get("shards", "stage:pack"), lambda name, sub: str(artifacts / name / sub))
    try:
        return open_shards(place)
    except UserError as error:
        log.warning("the sweep's page shows answers without their queries: %s", error)
        return None


def _sample(
    sweep: Sweep,
    key: str,
    answers: Sequence[tuple[Point, Job, Mapping[str, Sequence[Mapping[str, Any]]]]],
    index: Index | None,
) -> dict[str, Any]:
    group = find_group(index, key)
    shown = picture_cards(read_pictures(group) if group is not None else None)
    given = [
        {
            "point": sweep.describe(point),
            **{name: rows[key][0].get(name) for name in ("generation", "quality", "reward")},
        }
        for point, _, rows in answers
    ]
    return {"key": key, "prompt": group.prompt.question if group is not None else "", **shown, "answers": given}


def _rows(sweep: Sweep) -> list[dict[str, Any]]:
    """The points as a table, best first."""
    points = list(sweep.points)
    if sweep.metrics:
        first = sweep.metrics[0]
        sign = -1 if first.better == "high" else 1
        points.sort(key=lambda p: sign * p.estimates[first.name].mean if first.name in p.estimates else np.inf)
    return [
        {
            "values": point.values,
            "numbers": [point.estimates.get(metric.name) for metric in sweep.metrics],
            "jobs": len(point.jobs),
        }
        for point in points
    ]


def _job(job: Job, sweep: Sweep, folder: Path) -> dict[str, Any]:
    report = job.folder / "report.html"
    return {
        "number": job.folder.name,
        "link": report.relative_to(folder).as_posix() if report.exists() else None,
        "values": [job.overrides.get(key, "") for key in varying(sweep.jobs)],
        "numbers": [job.metrics.get(metric.path) for metric in sweep.metrics],
        "state": job.first_line or ("was there already" if job.reused else "done"),
        "failed": job.failure is not None,
    }
