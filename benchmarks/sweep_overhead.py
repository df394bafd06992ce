"""What a sweep costs beside the training in it: nine w x k jobs against nine single MM-DPO stages plus one upstream.

    python -m benchmarks.sweep_overhead --small     tiny random models, a few minutes
    python -m benchmarks.sweep_overhead             the demo's sizes, about half an hour on two cores

Everything is a command as a user types it, in its own process, from two artefact stores that are empty at first:

    whole   run.py stage=mmdpo                      in one store: start-up, the upstream, one MM-DPO stage
    more    the same with another w, k, NUM times   start-up and one MM-DPO stage
    again   the last of these once more             start-up alone: everything is reused
    sweep   run.py -m over w x k, stage=mmdpo       in the other store

    alone = whole + 8 * (more - again)              one start-up, one upstream, nine stages

Prints one JSON line with wall and CPU seconds (of all child processes) of both sides and their ratios. With
`--stage report` a job also answers, is scored and gets its page. Other words are overrides of every command.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import report

PROJECT = Path(__file__).resolve().parents[1]
SETTINGS = ("method.w", "method.k")
GRID = (("0.1", "0.5", "1.0"), ("0.25", "0.5", "1.0"))
NUM_JOBS = len(GRID[0]) * len(GRID[1])
QUIET = ("logger=none", "runtime.progress=false")
SMALL = ("scale=tiny", "scale.max_steps=20", "scale.num_groups=96")
TARGET = 1.2


@dataclass(frozen=True)
class Cost:
    """Wall and CPU seconds."""

    wall: float
    cpu: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wall - other.wall, self.cpu - other.cpu)

    def __mul__(self, factor: float) -> Cost:
        return Cost(self.wall * factor, self.cpu * factor)


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help=" ".join(SMALL))
    parser.add_argument("--stage", default="mmdpo", help="the stage that every job ends with (default: %(default)s)")
    parser.add_argument("--num", type=int, default=2, help="single stages that are measured (default: %(default)s)")
    options, overrides = parser.parse_known_args(words)
    overrides = [f"stage={options.stage}", *QUIET, *(SMALL if options.small else ()), *overrides]
    with tempfile.TemporaryDirectory() as folder:
        alone = alone_cost(Path(folder), overrides, num=options.num)
        sweep = sweep_cost(Path(folder), overrides)
    report(
        benchmark="sweep_overhead",
        stage=options.stage,
        small=options.small,
        jobs=NUM_JOBS,
        cores=os.cpu_count(),
        sweep_wall_seconds=sweep.wall,
        sweep_cpu_seconds=sweep.cpu,
        alone_wall_seconds=alone.wall,
        alone_cpu_seconds=alone.cpu,
        wall_ratio=sweep.wall / alone.wall,
        cpu_ratio=sweep.cpu / alone.cpu,
        target=TARGET,
    )


def alone_cost(folder: Path, overrides: Sequence[str], *, num: int) -> Cost:
    """One start-up, one upstream and nine stages, from single commands."""
    store = folder / "alone"
    whole = run(store, *overrides)
    # values that no other command has, so that a stage is trained for each
    others = [f"method.w={0.2 + number / 100}" for number in range(num)]
    more = [run(store, other, *overrides) for other in others]
    again = run(store, others[-1], *overrides)
    mean = sum(more, Cost(0.0, 0.0)) * (1 / num)
    check_built(store, mmdpo=1 + num)
    return whole + (mean - again) * (NUM_JOBS - 1)


def sweep_cost(folder: Path, overrides: Sequence[str]) -> Cost:
    """The sweep from an empty store."""
    store = folder / "sweep"
    varied = [f"{name}={','.join(values)}" for name, values in zip(SETTINGS, GRID, strict=True)]
    cost = run(store, "-m", *varied, *overrides)
    check_built(store, mmdpo=NUM_JOBS)
    return cost


def check_built(store: Path, *, mmdpo: int) -> None:
    """Every policy was trained, and what they start from was built once."""
    for stage, expected in {"mmdpo": mmdpo, "sft": 1, "reward": 1, "score": 1, "reference": 1}.items():
        found = len(list((store / stage).glob("*/artifact.json")))
        if found != expected:
            raise RuntimeError(f"{store.name}: the stage {stage} was built {found} times, not {expected}")


def run(store: Path, *words: str) -> Cost:
    """Run one command of the user's and say what it cost."""
    env = {**os.environ, "MMRLHF_ARTIFACTS": str(store)}
    command = [sys.executable, "run.py", *words, f"paths.outputs={store}-outputs"]
    before, started = _cpu_of_children(), time.perf_counter()
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, check=False)
    cost = Cost(time.perf_counter() - started, _cpu_of_children() - before)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return cost


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
