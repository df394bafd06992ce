"""What a sweep found: its jobs, the points they are at, and every number there with an interval.

Jobs that differ in a seed only are at one point. An interval is over seeds where a point has several (Student's t on
their mean); with one seed it is the job's own, over queries.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from mmrlhf.errors import ConfigError
from mmrlhf.reporting.outcome import FAILURE_FILE, STAGES_FILE
from mmrlhf.summaries.summary import METRICS_FILE
from mmrlhf.text import first_line


@dataclass(frozen=True)
class Metric:
    """A number that a sweep compares: its short name, where it is (`stage/name/...`), and which way is better."""

    name: str
    path: str
    better: Literal["high", "low"] = "high"

    def __post_init__(self) -> None:
        if self.better not in ("high", "low"):
            raise ConfigError(
                "not a direction", where=f"sweep_metrics.{self.name}.better", given=self.better, expected="high or low"
            )


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its overrides, its numbers as `stage/name`, and why it failed if it did.

    `reused`: nothing had to be run, an earlier job had made everything.
    """

    folder: Path
    overrides: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str | None = None
    reused: bool = False

    @property
    def first_line(self) -> str:
        """The first line of why it failed; empty if it did not."""
        return first_line(self.failure or "")


@dataclass(frozen=True)
class Estimate:
    """The mean over a point's jobs, its 95% interval where there is one, and how many jobs it is of."""

    mean: float
    low: float | None
    high: float | None
    num_jobs: int

    def __str__(self) -> str:
        interval = f" [{_short(self.low)}, {_short(self.high)}]" if self.low is not None else ""
        return f"{_short(self.mean)}{interval}"


def _short(value: float | None) -> str:
    """Three decimals for the usual sizes, without a leading zero to lose space on."""
    if value is None:
        return ""
    return f"{value:.3f}" if 0.01 <= abs(value) < 100 or value == 0 else f"{value:.2g}"


@dataclass(frozen=True)
class Point:
    """One point of a sweep: the values of the settings that vary, its jobs, its numbers by metric name."""

    values: tuple[str, ...]
    jobs: tuple[Job, ...]
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True)
class Sweep:
    """A finished sweep.

    Args:
        folder: where its jobs are.
        jobs: all of them, in the order of their numbers.
        settings: dotted names of the settings that vary, seeds left out.
        metrics: the numbers that some job has.
        points: in the order of their values.
    """

    folder: Path
    jobs: tuple[Job, ...]
    settings: tuple[str, ...]
    metrics: tuple[Metric, ...]
    points: tuple[Point, ...]

    @property
    def failed(self) -> list[Job]:
        """The jobs that left no numbers."""
        return [job for job in self.jobs if job.failure is not None]

    @property
    def labels(self) -> list[str]:
        """The settings' names without what is clear without it: `w` for `method.w` if no other setting ends in it."""
        last = [name.rpartition(".")[2] for name in self.settings]
        return [short if last.count(short) == 1 else name for short, name in zip(last, self.settings, strict=True)]

    def best(self, metric: Metric) -> Point | None:
        """The point with the best mean; None if no job has the number."""
        known = [point for point in self.points if metric.name in point.estimates]
        sign = 1 if metric.better == "high" else -1
        return max(known, key=lambda point: sign * point.estimates[metric.name].mean) if known else None

    def axes(self) -> tuple[list[str], list[str]] | None:
        """The values of the two settings, for a table over them; None unless exactly two vary."""
        if len(self.settings) != 2:
            return None
        rows, columns = (sorted({point.values[axis] for point in self.points}, key=_order) for axis in (0, 1))
        return rows, columns

    def describe(self, point: Point) -> str:
        """Write a point as `w=0.5 k=1.0`."""
        return " ".join(f"{label}={value}" for label, value in zip(self.labels, point.values, strict=True))


def read_sweep(folder: Path, metrics: Sequence[Metric], *, expects_numbers: bool = True) -> Sweep:
    """Read every job of a sweep's folder and sort them into points.

    Args:
        expects_numbers: whether a job without any has failed; not where jobs only say what they would do.
    """
    jobs = tuple(read_jobs(folder, expects_numbers=expects_numbers))
    settings = tuple(key for key in varying(jobs) if not is_seed(key))
    found = tuple(metric for metric in metrics if any(_number(job, metric.path) is not None for job in jobs))
    places: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        places.setdefault(tuple(job.overrides.get(key, "") for key in settings), []).append(job)
    ordered = sorted(places.items(), key=lambda item: [_order(value) for value in item[0]])
    points = tuple(Point(values, tuple(there), _estimates(there, found)) for values, there in ordered)
    return Sweep(folder, jobs, settings, found, points)


def searched(metrics: Sequence[Metric], numbers: Mapping[str, float], direction: str) -> float:
    """The number that a search goes by: the first metric that the job has, which is also the table's first.

    Args:
        direction: `maximize` or `minimize`, of the sweeper.

    Raises:
        ConfigError: the job has none of the metrics, or the search goes the wrong way.
    """
    found = next((metric for metric in metrics if metric.path in numbers), None)
    if found is None:
        raise ConfigError(
            "this job has none of the numbers that a search could go by",
            where="sweep_metrics",
            given=", ".join(metric.path for metric in metrics),
            expected=f"one of the numbers that it has: {', '.join(sorted(numbers)) or 'none'}",
            fix="'+sweep_metrics.NAME={path: PATH, better: high}', or the stage that makes one of the given numbers",
        )
    wanted = "maximize" if found.better == "high" else "minimize"
    if direction != wanted:
        raise ConfigError(
            f"the search would go for bad values of {found.name}",
            where="hydra.sweeper.direction",
            given=f"{direction}, and {found.path} is better {found.better}",
            expected=wanted,
            fix=f"hydra.sweeper.direction={wanted}, or `better` of sweep_metrics.{found.name}",
        )
    return numbers[found.path]


def is_seed(key: str) -> bool:
    """Say whether a setting only repeats a point."""
    return key.rpartition(".")[2] == "seed"


def _estimates(jobs: Sequence[Job], metrics: Sequence[Metric]) -> dict[str, Estimate]:
    return {metric.name: found for metric in metrics if (found := estimate(jobs, metric)) is not None}


def estimate(jobs: Sequence[Job], metric: Metric) -> Estimate | None:
    """Average a number over the jobs of a point; None if no job has it."""
    done = [(job, value) for job in jobs if (value := _number(job, metric.path)) is not None]
    if not done:
        return None
    values = np.array([value for _, value in done])
    mean = float(values.mean())
    if len(values) > 1:
        from scipy import stats  # takes seconds to import; only where a point has several seeds

        half = float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values))
        return Estimate(mean, mean - half, mean + half, len(values))
    parent = metric.path.removesuffix("mean") if metric.path.endswith("/mean") else f"{metric.path}_"
    low, high = _number(done[0][0], f"{parent}low"), _number(done[0][0], f"{parent}high")
    return Estimate(mean, *((low, high) if low is not None and high is not None else (None, None)), 1)


def _number(job: Job, path: str) -> float | None:
    value = job.metrics.get(path)
    return value if value is not None and np.isfinite(value) else None


def read_jobs(folder: Path, *, expects_numbers: bool = True) -> list[Job]:
    """Read every job of a sweep's folder, in the order of their numbers."""
    jobs = []
    numbered = [item for item in folder.iterdir() if item.is_dir() and item.name.isdigit()]
    for job in sorted(numbered, key=lambda item: int(item.name)):
        overrides = dict(line.partition("=")[::2] for line in _load(job / ".hydra" / "overrides.yaml", _as_list, []))
        content = _load(job / METRICS_FILE, json.loads, {})
        stages = _load(job / STAGES_FILE, json.loads, {})
        reused = bool(stages) and all(stage["reused"] for stage in stages.values())
        failure = _load(job / FAILURE_FILE, json.loads, None)
        message = None if content or not expects_numbers else "it left no results: it was ended, or is still running"
        failed = failure["message"] if failure else message
        jobs.append(Job(job, overrides, dict(flatten(content)), failed, reused))
    return jobs


def _as_list(text: str) -> list[str]:
    """The words of a job; none where it was killed while Hydra wrote them."""
    return yaml.safe_load(text) or []


def _load(path: Path, parse: Callable[[str], Any], default: Any) -> Any:
    return parse(path.read_text(encoding="utf-8")) if path.is_file() else default


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers inside nested mappings as (`outer/inner`, value)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def varying(jobs: Sequence[Job]) -> list[str]:
    """Name the settings that differ between jobs, in the order they were given."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def _order(value: str) -> tuple[int, float, str]:
    """Numbers by size, then everything else by name."""
    try:
        return 0, float(value), value
    except ValueError:
        return 1, 0.0, value
