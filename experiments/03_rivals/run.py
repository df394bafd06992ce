"""Runs the study of MM-DPO and its rivals, and collects it: `python experiments/03_rivals/run.py [override ...]`.

Every job is a run of run.py; jobs of one seed and one flip rate share everything up to preference training, and a study
that was stopped goes on with the jobs that are missing. Writes results.csv, results.md and results.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from mmrlhf.metrics.intervals import bootstrap_mean, paired_difference
from mmrlhf.stages.sweep_results import Job, read_jobs

HERE = Path(__file__).resolve().parent
METHODS = "dpo,mean_beta_dpo,mmdpo,shuffled_margin,hard_filter,soft_labels"
HARDEST_METHODS = "dpo,mmdpo"
FLIP_RATE = "stages.world.flip_rate"
BASELINE = ("dpo", "all")
COLUMNS = ("flip_rate", "method", "pairs", "seeds", "queries")
MEASURES = ("quality", "gain_over_dpo", "kl", "reward")

Answers = Mapping[tuple[str, str, str], Mapping[str, float]]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Arm:
    """One method on one choice of pairs at one flip rate.

    answers: (seed, query, sample) -> quality, kl and reward of that held-out answer.
    """

    flip_rate: str
    method: str
    pairs: str
    answers: Answers

    def values(self, name: str) -> tuple[list[float], list[str]]:
        """A measure of all answers, and the (seed, query) that each belongs to."""
        known = {key: row[name] for key, row in self.answers.items() if name in row}
        return list(known.values()), [f"{seed}/{query}" for seed, query, _ in known]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweeps, then collect what they left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="seeds of everything, data included (default: %(default)s)")
    parser.add_argument("--flips", default="0.0,0.32", help="shares of turned rankings (default: %(default)s)")
    parser.add_argument("--methods", default=METHODS, help="methods on all pairs (default: %(default)s)")
    parser.add_argument("--hardest", default=HARDEST_METHODS, help="methods on hardest pairs (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/03_rivals"), help="the jobs' folders")
    parser.add_argument("--results", type=Path, default=HERE, help="where table and picture go")
    parser.add_argument("--collect", action="store_true", help="run nothing, only collect")
    options, overrides = parser.parse_known_args(arguments)
    folders = {pairs: options.out / pairs for pairs, methods in sweeps_of(options).items() if methods}
    if not options.collect:
        for pairs, folder in folders.items():
            run_sweep(folder, pairs, sweeps_of(options)[pairs], options, overrides)
    arms = read_arms([job for folder in folders.values() for job in read_jobs(folder)])
    if not arms:
        sys.exit(f"no job below {options.out} has finished")
    write_results(options.results, summarise(arms))


def sweeps_of(options: argparse.Namespace) -> dict[str, str]:
    """Which methods run on which pairs."""
    return {"all": options.methods, "hardest": options.hardest}


def run_sweep(folder: Path, pairs: str, methods: str, options: argparse.Namespace, overrides: Sequence[str]) -> None:
    """Run every method at every seed and flip rate; failed jobs are listed by the sweep and do not stop the others."""
    # the last setting varies fastest, so the jobs of one seed and flip rate follow one another on one upstream
    varied = [f"seed={options.seeds}", f"{FLIP_RATE}={options.flips}", f"method={methods}"]
    command = [sys.executable, "run.py", "-m", *varied, f"pairs={pairs}", f"hydra.sweep.dir={folder}", *overrides]
    print(" ".join(["python", *command[1:]]), flush=True)
    subprocess.run(command, check=False, cwd=HERE.parents[1])


def read_arms(jobs: Sequence[Job]) -> list[Arm]:
    """Put the jobs of all seeds together."""
    found: dict[tuple[str, str, str], dict] = {}
    for job in jobs:
        if job.failure:
            print(f"left out, because it failed: {job.folder}: {job.failure.splitlines()[0]}")
            continue
        arm = (job.overrides[FLIP_RATE], job.overrides["method"], job.overrides["pairs"])
        found.setdefault(arm, {}).update(read_answers(job))
    return [Arm(*arm, answers) for arm, answers in found.items()]


def read_answers(job: Job) -> dict[tuple[str, str, str], dict[str, float]]:
    """Quality, reward and log-ratio of every held-out answer of a job."""
    answers = {}
    with (job.folder / "artifacts" / "evaluate" / "samples.jsonl").open() as file:
        for row in map(json.loads, file):
            values = {"quality": row["quality"], "reward": row["reward"]}
            if row["reference_logprob"] is not None:
                values["kl"] = row["logprob"] - row["reference_logprob"]
            key = (job.overrides["seed"], row["key"], str(row["sample"]))
            answers[key] = {name: float(value) for name, value in values.items() if value is not None}
    return answers


def summarise(arms: Sequence[Arm]) -> list[dict]:
    """One row for each arm: every measure with its 95% bootstrap interval over (seed, query), paired for the gain."""
    rows = []
    for arm in sorted(arms, key=lambda arm: (float(arm.flip_rate), arm.pairs)):
        seeds = sorted({seed for seed, _, _ in arm.answers})
        row: dict = {"flip_rate": arm.flip_rate, "method": arm.method, "pairs": arm.pairs, "seeds": " ".join(seeds)}
        row["queries"] = len({key[:2] for key in arm.answers})
        for name in ("quality", "kl", "reward"):
            values, groups = arm.values(name)
            row[name] = tuple(bootstrap_mean(values, groups=groups)) if values else None
        base = next(
            (one for one in arms if (one.method, one.pairs) == BASELINE and one.flip_rate == arm.flip_rate), None
        )
        row["gain_over_dpo"] = gain(arm, base) if base is not None and base is not arm else None
        row["quality_by_seed"] = {seed: mean_of_seed(arm, seed) for seed in seeds}
        rows.append(row)
    return rows


def gain(arm: Arm, base: Arm) -> Triple | None:
    """Quality minus the baseline's, on the answers to the same queries of the same seeds."""
    both = [key for key in arm.answers if "quality" in arm.answers[key] and "quality" in base.answers.get(key, {})]
    if not both:
        return None
    own, other = ([one.answers[key]["quality"] for key in both] for one in (arm, base))
    low_high = paired_difference(own, other, groups=[f"{seed}/{query}" for seed, query, _ in both])
    return tuple(low_high)  # type: ignore[return-value]


def mean_of_seed(arm: Arm, seed: str) -> float | None:
    """Mean quality of one seed's answers."""
    values = [row["quality"] for key, row in arm.answers.items() if key[0] == seed and "quality" in row]
    return sum(values) / len(values) if values else None


def write_results(folder: Path, rows: Sequence[Mapping]) -> None:
    """Write results.csv, results.md and results.png, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        ends = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
        writer.writerow([*COLUMNS, *ends, "quality_by_seed"])
        for row in rows:
            numbers = [f"{value:.4f}" if value is not None else "" for n in MEASURES for value in row[n] or (None,) * 3]
            by_seed = " ".join(f"{v:.4f}" for v in row["quality_by_seed"].values() if v is not None)
            writer.writerow([*(row[name] for name in COLUMNS), *numbers, by_seed])
    heads = ["flips", "method", "pairs", "seeds", *(name.replace("_", " ") for name in MEASURES)]
    cells = [[*(str(row[n]) for n in COLUMNS[:4]), *(shown(row[name]) for name in MEASURES)] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *cells)]
    (folder / "results.md").write_text("\n".join(lines) + "\n")
    table = Table(*heads, title="rivals, 95% intervals over queries of all seeds", title_justify="left")
    for line in cells:
        table.add_row(*line)
    Console().print(table)
    draw(rows).savefig(folder / "results.png", dpi=130)
    print(f"results  {folder / 'results.csv'}, results.md, results.png")


def shown(value: Triple | None) -> str:
    """A number with its interval."""
    return "" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def draw(rows: Sequence[Mapping]) -> Figure:
    """True quality against the distance from the reference, one panel for each flip rate."""
    flips = sorted({row["flip_rate"] for row in rows}, key=float)
    figure = Figure(figsize=(5.2 * max(len(flips), 1), 4.2), layout="constrained")
    panels = figure.subplots(1, max(len(flips), 1), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys((row["method"], row["pairs"]) for row in rows))
    for axes, flip in zip(panels, flips, strict=False):
        for row in rows:
            if row["flip_rate"] != flip or not row["quality"] or not row["kl"]:
                continue
            (x, x_low, x_high), (y, y_low, y_high) = row["kl"], row["quality"]
            style = {"color": f"C{names.index((row['method'], row['pairs'])) % 10}", "capsize": 2}
            style |= {"marker": "o" if row["pairs"] == "all" else "s", "linestyle": "none"}
            label = row["method"] if row["pairs"] == "all" else f"{row['method']}, {row['pairs']} pairs"
            axes.errorbar(
                x, y, label=label, **style,
                xerr=[[max(x - x_low, 0)], [max(x_high - x, 0)]],
                yerr=[[max(y - y_low, 0)], [max(y_high - y, 0)]],
            )  # fmt: skip
        axes.set_title(f"label flips: {float(flip):.0%}")
        axes.set_xlabel("KL to the reference, nats an answer")
    panels[0].set_ylabel("true quality of held-out answers")
    panels[-1].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
