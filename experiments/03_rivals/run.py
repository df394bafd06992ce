"""Runs the study of MM-DPO and its rivals, and collects it: `python experiments/03_rivals/run.py [override ...]`.

Every job is a run of run.py; jobs of one seed and one flip rate share everything up to preference training, and a study
that was stopped goes on with the jobs that are missing. Writes results.csv, results.md and results.png for the rivals,
wk.csv, wk.md and wk.png for MM-DPO over w and k.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmrlhf.metrics.intervals import Interval, mean_interval, paired_difference
from mmrlhf.sweeps.results import Job, read_jobs
from mmrlhf.terminal.words import add_row, new_table, show

HERE = Path(__file__).resolve().parent
METHODS = "dpo,mean_beta_dpo,mmdpo,shuffled_margin,hard_filter,soft_labels"
HARDEST_METHODS = "dpo,mmdpo"
FLIP_RATE = "stages.world.flip_rate"
# what tells one arm from another, with the values that run.py has where a job does not say
ARM = {FLIP_RATE: "0.0", "method": "mmdpo", "pairs": "all", "method.w": "", "method.k": ""}
BASELINE, SUBJECT = ("dpo", "all"), ("mmdpo", "all")
RIVALS, GRID = ("flip_rate", "method", "pairs"), ("w", "k")
# mmdpo_ahead: what MM-DPO, at the usual w and k on all pairs, gains over the arm
MEASURES = ("quality", "gain_over_dpo", "mmdpo_ahead", "kl", "reward")
KL_LABEL, QUALITY_LABEL = "KL to the reference, nats an answer", "true quality of held-out answers"

Answers = Mapping[tuple[str, str, str], Mapping[str, float]]
Row = Mapping[str, Any]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Arm:
    """One method on one choice of pairs at one flip rate, with its own w and k in the table over these.

    answers: (seed, query, sample) -> quality, kl and reward of that held-out answer.
    """

    flip_rate: str
    method: str
    pairs: str
    w: str
    k: str
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
    parser.add_argument("--w", default="0.1,0.5,1.0", help="MM-DPO's w at flip rate 0 (default: %(default)s)")
    parser.add_argument("--k", default="0.25,0.5,1.0", help="MM-DPO's k at flip rate 0 (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/03_rivals"), help="the jobs' folders")
    parser.add_argument("--results", type=Path, default=HERE, help="where tables and pictures go")
    parser.add_argument("--collect", action="store_true", help="run nothing, only collect")
    options, overrides = parser.parse_known_args(arguments)
    folders = {options.out.resolve() / name: varied for name, varied in sweeps_of(options).items()}
    if not options.collect:
        for folder, varied in folders.items():
            run_sweep(folder, varied, overrides)
    arms = read_arms([job for folder in folders if folder.is_dir() for job in read_jobs(folder)])
    if not arms:
        sys.exit(f"no job below {options.out} has finished")
    write_results(options.results, summarise(arms))


def sweeps_of(options: argparse.Namespace) -> dict[str, list[str]]:
    """The folder of each sweep and what varies in it; the table over w and k belongs to unturned rankings."""
    # the last setting varies fastest, so the jobs of one seed and flip rate follow one another on one upstream
    shared = [f"seed={options.seeds}", f"{FLIP_RATE}={options.flips}"]
    found = {}
    for pairs, methods in (("all", options.methods), ("hardest", options.hardest)):
        if methods:
            found[pairs] = [*shared, f"method={methods}", f"pairs={pairs}"]
    unturned = [flip for flip in options.flips.split(",") if float(flip) == 0]
    if unturned and options.w and options.k:
        grid = [f"method.w={options.w}", f"method.k={options.k}"]
        found["wk"] = [shared[0], f"{FLIP_RATE}={unturned[0]}", "method=mmdpo", *grid, "pairs=all"]
    return found


def run_sweep(folder: Path, varied: Sequence[str], overrides: Sequence[str]) -> None:
    """Run all jobs of a sweep; failed ones are listed by the sweep and do not stop the others."""
    command = [sys.executable, "run.py", "-m", *varied, f"hydra.sweep.dir={folder}", *overrides]
    print(" ".join(["python", *command[1:]]), flush=True)
    subprocess.run(command, check=False, cwd=HERE.parents[1])


def read_arms(jobs: Sequence[Job]) -> list[Arm]:
    """Put the jobs of all seeds together."""
    found: dict[tuple[str, str, str, str, str], dict] = {}
    for job in jobs:
        if job.failure:
            print(f"left out, because it failed: {job.folder}: {job.first_line}")
            continue
        flip, method, pairs, w, k = (job.overrides.get(name, usual) for name, usual in ARM.items())
        found.setdefault((str(float(flip)), method, pairs, w, k), {}).update(read_answers(job))
    return [Arm(*arm, answers) for arm, answers in found.items()]


def read_answers(job: Job) -> dict[tuple[str, str, str], dict[str, float]]:
    """Quality, reward and log-ratio of every held-out answer of a job."""
    answers = {}
    with (job.folder / "artifacts" / "evaluate" / "samples.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            values = {"quality": row["quality"], "reward": row["reward"]}
            if row["reference_logprob"] is not None:
                values["kl"] = row["logprob"] - row["reference_logprob"]
            key = (job.overrides.get("seed", "0"), row["key"], str(row["sample"]))
            answers[key] = {name: float(value) for name, value in values.items() if value is not None}
    return answers


def summarise(arms: Sequence[Arm]) -> list[Row]:
    """One row for each arm: every measure with its 95% interval over (seed, query), paired for the gain."""
    rows = []
    for arm in sorted(arms, key=lambda arm: (float(arm.flip_rate), arm.pairs, float(arm.w or -1), float(arm.k or -1))):
        seeds = sorted({seed for seed, _, _ in arm.answers})
        row: dict = {name: getattr(arm, name) for name in (*RIVALS, *GRID)}
        row |= {"seeds": " ".join(seeds), "queries": len({key[:2] for key in arm.answers})}
        for name in ("quality", "kl", "reward"):
            values, groups = arm.values(name)
            row[name] = triple(mean_interval(values, groups=groups)) if values else None
        base, subject = (find(arms, name, arm.flip_rate) for name in (BASELINE, SUBJECT))
        row["gain_over_dpo"] = gain(arm, base) if base is not None and base is not arm else None
        row["mmdpo_ahead"] = gain(subject, arm) if subject is not None and subject is not arm else None
        row["quality_by_seed"] = {seed: mean_of_seed(arm, seed) for seed in seeds}
        rows.append(row)
    return rows


def find(arms: Sequence[Arm], name: tuple[str, str], flip_rate: str) -> Arm | None:
    """The arm of a method and its pairs outside the table over w and k, if there is one."""
    same = (arm for arm in arms if (arm.method, arm.pairs) == name and arm.flip_rate == flip_rate and not arm.w)
    return next(same, None)


def gain(arm: Arm, base: Arm) -> Triple | None:
    """Quality minus the baseline's, on the answers to the same queries of the same seeds."""
    both = [key for key in arm.answers if "quality" in arm.answers[key] and "quality" in base.answers.get(key, {})]
    if not both:
        return None
    own, other = ([one.answers[key]["quality"] for key in both] for one in (arm, base))
    return triple(paired_difference(own, other, groups=[f"{seed}/{query}" for seed, query, _ in both]))


def triple(found: Interval) -> Triple:
    """A number and the ends of its interval, nan where it has none."""
    low, high = (math.nan if end is None else end for end in (found.low, found.high))
    return found.mean, low, high


def mean_of_seed(arm: Arm, seed: str) -> float | None:
    """Mean quality of one seed's answers."""
    values = [row["quality"] for key, row in arm.answers.items() if key[0] == seed and "quality" in row]
    return sum(values) / len(values) if values else None


def write_results(folder: Path, rows: Sequence[Row]) -> None:
    """Write and print the table of rivals and the one over w and k, as far as there are jobs of them."""
    folder.mkdir(parents=True, exist_ok=True)
    rivals, grid = ([row for row in rows if bool(row["w"] and row["k"]) is inside] for inside in (False, True))
    if rivals:
        write_table(folder / "results", rivals, RIVALS, "rivals, 95% intervals over queries of all seeds")
        draw(rivals).savefig(folder / "results.png", dpi=130)
    if grid:
        write_table(folder / "wk", grid, GRID, "MM-DPO over w and k, 95% intervals over queries of all seeds")
        beside = [row for row in rivals if (row["method"], row["pairs"]) == BASELINE and float(row["flip_rate"]) == 0]
        draw_grid(grid, beside).savefig(folder / "wk.png", dpi=130)


def write_table(stem: Path, rows: Sequence[Row], settings: Sequence[str], title: str) -> None:
    """Write STEM.csv and STEM.md, and print the table."""
    columns = [*settings, "seeds", "queries"]
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        ends = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
        writer.writerow([*columns, *ends, "quality_by_seed"])
        for row in rows:
            numbers = [f"{value:.4f}" if value is not None else "" for n in MEASURES for value in row[n] or (None,) * 3]
            by_seed = " ".join(f"{v:.4f}" for v in row["quality_by_seed"].values() if v is not None)
            writer.writerow([*(row[name] for name in columns), *numbers, by_seed])
    heads = [name.replace("_", " ") for name in (*settings, "seeds", *MEASURES)]
    cells = [[*(str(row[n]) for n in columns[:-1]), *(shown(row[name]) for name in MEASURES)] for row in rows]
    lines = ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *cells)]
    stem.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = new_table(*heads, title=title)
    for line in cells:
        add_row(table, *line)
    show(table)
    print(f"results  {stem.with_suffix('.csv')}, {stem.name}.md, {stem.name}.png")


def shown(value: Triple | None) -> str:
    """A number with its interval."""
    return "" if value is None else f"{value[0]:.3f} [{value[1]:.3f}, {value[2]:.3f}]"


def draw(rows: Sequence[Row]) -> Figure:
    """True quality against the distance from the reference, one panel for each flip rate."""
    flips = sorted({row["flip_rate"] for row in rows}, key=float)
    figure = Figure(figsize=(5.2 * len(flips), 4.2), layout="constrained")
    panels = figure.subplots(1, len(flips), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys((row["method"], row["pairs"]) for row in rows))
    for axes, flip in zip(panels, flips, strict=True):
        for row in rows:
            if row["flip_rate"] == flip:
                label = row["method"] if row["pairs"] == "all" else f"{row['method']}, {row['pairs']} pairs"
                marker = "o" if row["pairs"] == "all" else "s"
                draw_point(axes, row, label, marker, names.index((row["method"], row["pairs"])))
        axes.set_title(f"label flips: {float(flip):.0%}")
        axes.set_xlabel(KL_LABEL)
    panels[0].set_ylabel(QUALITY_LABEL)
    panels[-1].legend(fontsize=8)
    return figure


def draw_grid(rows: Sequence[Row], beside: Sequence[Row]) -> Figure:
    """Quality and KL over w and k as maps, and one against the other beside DPO."""
    figure = Figure(figsize=(16.5, 4.4), layout="constrained")
    quality, distance, both = figure.subplots(1, 3)
    draw_map(quality, rows, "quality", QUALITY_LABEL)
    draw_map(distance, rows, "kl", KL_LABEL)
    for number, row in enumerate(rows):
        draw_point(both, row, f"w = {row['w']}, k = {row['k']}", "o", number)
    for row in beside:
        draw_point(both, row, row["method"], "s", len(rows))
    both.set(xlabel=KL_LABEL, ylabel=QUALITY_LABEL)
    both.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_point(axes: Axes, row: Row, label: str, marker: str, number: int) -> None:
    """An arm's quality over its KL with both intervals; nothing where one is not known."""
    if not row["quality"] or not row["kl"]:
        return
    (x, x_low, x_high), (y, y_low, y_high) = row["kl"], row["quality"]
    axes.errorbar(
        x, y, label=label, color=f"C{number % 10}", capsize=2, marker=marker, linestyle="none",
        xerr=[[max(x - x_low, 0)], [max(x_high - x, 0)]],
        yerr=[[max(y - y_low, 0)], [max(y_high - y, 0)]],
    )  # fmt: skip


def draw_map(axes: Axes, rows: Sequence[Row], name: str, title: str) -> None:
    """A measure over w (down) and k (across), with its interval in every cell."""
    w, k = (sorted({row[setting] for row in rows}, key=float) for setting in GRID)
    found = {(w.index(row["w"]), k.index(row["k"])): row[name] for row in rows if row[name]}
    axes.set(xlabel="k", ylabel="w", title=title)
    if not found:
        return
    means = [[found[i, j][0] if (i, j) in found else float("nan") for j in range(len(k))] for i in range(len(w))]
    axes.imshow(means, cmap="YlGn", alpha=0.7, aspect="auto")
    for (i, j), (mean, low, high) in found.items():
        axes.text(j, i, f"{mean:.3f}\n[{low:.3f}, {high:.3f}]", ha="center", va="center", fontsize=9)
    axes.set_xticks(range(len(k)), k)
    axes.set_yticks(range(len(w)), w)


if __name__ == "__main__":
    main()
