"""MM-DPO and its rivals at equal KL, negative margins, hardest pairs, and w and k chosen on other queries.

    python experiments/04_equal_kl/study.py [--seeds 0,1,2] [--parts methods,strong,negative,hardest,wk] [OVERRIDE ...]

Runs sweeps of run.py in the order of their worth, then collects what is there; a sweep whose jobs are all done is not
started again, and a stopped one goes on with the jobs that are missing. Overrides go to every job. Writes points.csv
(every trained policy), equal.csv, equal.md and equal.png (methods at one KL), curves.csv and curves.md (at several),
wk.csv and wk.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from mmrlhf.metrics.equal_distance import Points, halves, lead_at, on_curve, quality_at
from mmrlhf.metrics.intervals import mean_interval, paired_difference
from mmrlhf.metrics.policy import k3_estimates
from mmrlhf.sweeps.results import Job, read_jobs
from mmrlhf.sweeps.study_tables import interval_columns, write_csv, write_markdown
from mmrlhf.sweeps.turned_rankings import turned_rankings

HERE = Path(__file__).resolve().parent
FLIPS = ("0.0", "0.32")
# beta of conf/method; a method of its own scale is swept on its own
USUAL_BETA = {"uni_dpo": 2.0}
BETA = 0.1
METHODS = ("dpo", "mmdpo", "da_dpo", "madpo", "uni_dpo", "gamma_po", "soft_labels", "hard_filter")
FACTORS, STRONG = (1, 4), (16,)
GRID = ("0.1", "0.5", "1", "4")
PAPER = ("0.5", "0.5")
PARTS = ("methods", "strong", "negative", "hardest", "wk")
# one pass over the scored queries, at twice the demo's rate; nothing is asked of the reward model but its rewards
SHORT = (
    "logger=none", "optim.epochs.mmdpo=1", "optim.mmdpo.lr=1e-4", "stages.mmdpo.answers.num_queries=0",
    "stages.mmdpo.training.schedule.val_limit=64",
)  # fmt: skip
ANSWERS = ("num_samples=2", "reward_model=null")
START = "evaluate_before"
TARGET_SHARE = 0.9  # of the nearest method's furthest point
DISTANCES = (0.05, 0.1, 0.2, 0.3, 0.4)  # nats, at which the whole curves are compared


@dataclass(frozen=True)
class Sweep:
    """One command of several jobs, in a folder of its own."""

    name: str
    part: str
    seed: str
    flip: str
    words: tuple[str, ...]
    jobs: int

    @property
    def stage(self) -> str:
        """Whose answers are read."""
        return START if self.part == START else "evaluate"


@dataclass
class Arm:
    """A method at one flip rate: for each strength, (seed/query) -> (quality, k3, log-ratio), means over answers."""

    part: str
    flip: str
    name: str
    answers: dict[float, dict[str, tuple[float, float, float]]] = field(default_factory=dict)

    @property
    def usual(self) -> dict[str, tuple[float, float, float]]:
        """At the method's own beta."""
        return self.answers.get(1.0, {})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweeps, then collect what they left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="seeds of everything, data included (default: %(default)s)")
    parser.add_argument("--flips", default=",".join(FLIPS), help="shares of turned rankings (default: %(default)s)")
    parser.add_argument("--parts", default=",".join(PARTS), help="what is run, in this order (default: %(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/04_equal_kl"), help="the jobs' folders")
    parser.add_argument("--results", type=Path, default=HERE, help="where tables and pictures go")
    parser.add_argument("--collect", action="store_true", help="run nothing, only collect")
    options, overrides = parser.parse_known_args(arguments)
    lists = [text.split(",") for text in (options.seeds, options.flips, options.parts, options.methods)]
    planned, out = list(sweeps(*lists)), options.out.resolve()
    if not options.collect:
        for sweep in planned:
            run(sweep, out, overrides)
    arms, start = read_arms(planned, out)
    if not arms or not start:
        sys.exit(f"no jobs below {out} have finished, or none of the reference's ({START})")
    write_results(options.results, arms, start)


# ---- what is run


def sweeps(seeds: Sequence[str], flips: Sequence[str], parts: Sequence[str], methods: Sequence[str]) -> Iterator[Sweep]:
    """All commands, the most telling first; a seed's reference before anything of it."""
    for part in parts:
        for seed in seeds:
            if part == parts[0]:
                words = (f"stage={START}", f"seed={seed}", *(f"stages.{START}.{word}" for word in ANSWERS))
                yield Sweep(f"start-{seed}", START, seed, FLIPS[0], words, 1)
            for flip in flips if part != "wk" else FLIPS[:1]:
                for number, (words, jobs) in enumerate(varied(part, methods)):
                    shared = (
                        "stage=evaluate",
                        f"seed={seed}",
                        *turned(flip),
                        *(f"stages.evaluate.{w}" for w in ANSWERS),
                    )
                    yield Sweep(f"{part}-{seed}-{flip}-{number}", part, seed, flip, (*shared, *words), jobs)


def varied(part: str, methods: Sequence[str]) -> Iterator[tuple[tuple[str, ...], int]]:
    """What varies in the commands of a part, and how many jobs that makes."""
    if part == "wk":
        grid = ",".join(GRID)
        yield ("method=mmdpo", f"method.w={grid}", f"method.k={grid}"), len(GRID) ** 2
    elif part == "negative":
        yield ("method=mmdpo", betas(BETA, FACTORS), "method.negative_margin=signed,drop"), 2 * len(FACTORS)
    elif part == "hardest":
        own = [name for name in ("dpo", "mmdpo", "soft_labels", "hard_filter") if name in methods]
        yield (f"method={','.join(own)}", betas(BETA, FACTORS), "pairs=hardest"), len(own) * len(FACTORS)
    else:
        factors = FACTORS if part == "methods" else STRONG
        scales: dict[float, list[str]] = defaultdict(list)
        for name in methods:
            scales[USUAL_BETA.get(name, BETA)].append(name)
        for beta, own in scales.items():
            yield (f"method={','.join(own)}", betas(beta, factors)), len(own) * len(factors)


def betas(usual: float, factors: Sequence[float]) -> str:
    """The setting with a method's beta times each factor."""
    return "method.beta=" + ",".join(f"{usual * factor:g}" for factor in factors)


def turned(flip: str) -> tuple[str, ...]:
    """Rank in a world of turned rankings; the supervised start stays that of the world as it is."""
    if float(flip) == 0:
        return ()
    return (*turned_rankings(flip), "inputs.shards=stage:pack_turned", "stages.tiny.shards=stage:pack")


def run(sweep: Sweep, out: Path, overrides: Sequence[str]) -> None:
    """Run a sweep unless all its jobs are done; failed ones do not stop the others."""
    folder = out / sweep.name
    if folder.is_dir() and sum(job.failure is None for job in read_jobs(folder)) == sweep.jobs:
        return
    command = [sys.executable, "run.py", "-m", *SHORT, *sweep.words, f"hydra.sweep.dir={folder}", *overrides]
    print(" ".join(["python", *command[1:]]), flush=True)
    subprocess.run(command, check=False, cwd=HERE.parents[1])


# ---- what came out


def read_arms(planned: Sequence[Sweep], out: Path) -> tuple[list[Arm], dict[str, tuple[float, float, float]]]:
    """Put the jobs of all seeds together; and what the references answered."""
    arms: dict[tuple[str, str, str], Arm] = {}
    start: dict[str, tuple[float, float, float]] = {}
    for sweep in planned:
        for job in read_jobs(out / sweep.name) if (out / sweep.name).is_dir() else []:
            if job.failure:
                print(f"left out, because it failed: {job.folder}: {job.first_line}")
                continue
            said = read_answers(job, sweep)
            if sweep.part == START:
                start |= said
                continue
            name, factor = named(sweep.part, job.overrides)
            part = "methods" if sweep.part == "strong" else sweep.part
            arm = arms.setdefault((part, sweep.flip, name), Arm(part, sweep.flip, name))
            arm.answers.setdefault(factor, {}).update(said)
    return list(arms.values()), start


def named(part: str, overrides: Mapping[str, str]) -> tuple[str, float]:
    """What an arm is called, and its beta in units of its method's own."""
    method = overrides["method"]
    if part == "wk":
        return f"w={overrides['method.w']} k={overrides['method.k']}", 1.0
    factor = round(float(overrides["method.beta"]) / USUAL_BETA.get(method, BETA), 6)
    more = {"negative": overrides.get("method.negative_margin", ""), "hardest": "hardest"}.get(part, "")
    return f"{method}, {more}" if more else method, factor


def read_answers(job: Job, sweep: Sweep) -> dict[str, tuple[float, float, float]]:
    """Quality, k3 and log-ratio of a job's answers, each query's mean over its answers."""
    found: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    with (job.folder / "artifacts" / sweep.stage / "samples.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            ratio = row["logprob"] - (row["logprob"] if sweep.part == START else row["reference_logprob"])
            found[f"{sweep.seed}/{row['key']}"].append((row["quality"], float(k3_estimates([ratio])[0]), ratio))
    return {key: tuple(np.mean(rows, axis=0)) for key, rows in found.items()}  # type: ignore[misc]


def curve(arm: Arm, start: Mapping[str, tuple[float, float, float]]) -> Points:
    """The reference and an arm's strengths, on the seeds that have FACTORS; more strengths where these have them."""
    seeds = {factor: {key.split("/")[0] for key in said} for factor, said in arm.answers.items()}
    whole = set.intersection(*(seeds.get(factor, set()) for factor in FACTORS), {key.split("/")[0] for key in start})
    columns = [start, *(arm.answers[factor] for factor in sorted(seeds) if whole and seeds[factor] >= whole)]
    queries = [key for key in start if key.split("/")[0] in whole and all(key in column for column in columns)]
    quality, kl = (np.array([[column[key][place] for column in columns] for key in queries]) for place in (0, 1))
    return Points(queries, kl.reshape(-1, len(columns)), quality.reshape(-1, len(columns)))


def write_results(folder: Path, arms: Sequence[Arm], start: Mapping[str, tuple[float, float, float]]) -> None:
    """Write and print all tables and pictures, as far as there are jobs of them."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "points.csv", list(points(arms)))
    grid = [arm for arm in arms if arm.part == "wk"]
    curves = {(a.flip, a.name): made for a in arms if a.part != "wk" and len((made := curve(a, start)).queries) > 1}
    if curves:
        by_flip = {flip: {name: made for (own, name), made in curves.items() if own == flip} for flip in FLIPS}
        rows = [row for flip, own in by_flip.items() for row in at_one_distance(flip, own)]
        write_csv(folder / "equal.csv", rows)
        write_markdown(folder / "equal.md", rows)
        draw(curves).savefig(folder / "equal.png", dpi=130)
        rows = [row for flip, own in by_flip.items() for row in along_the_curve(flip, own)]
        if rows:
            write_csv(folder / "curves.csv", rows)
            write_markdown(folder / "curves.md", rows)
    if len(grid) > 1:
        rows = list(chosen_elsewhere(grid, next((a for a in arms if (a.flip, a.name) == (FLIPS[0], "dpo")), None)))
        write_csv(folder / "wk.csv", rows)
        write_markdown(folder / "wk.md", rows)


def points(arms: Sequence[Arm]) -> Iterator[dict[str, object]]:
    """A row for each trained method and strength: quality, KL by both estimators, over all seeds."""
    for arm in arms:
        for factor, said in sorted(arm.answers.items()):
            seeds = sorted({key.split("/")[0] for key in said})
            row: dict[str, object] = {"part": arm.part, "flip rate": arm.flip, "arm": arm.name, "beta x": f"{factor:g}",
                                      "seeds": " ".join(seeds), "queries": len(said)}  # fmt: skip
            for place, name in enumerate(("quality", "kl", "kl k1")):
                row |= interval_columns(name, mean_interval([values[place] for values in said.values()]))
            yield row


def at_one_distance(flip: str, curves: Mapping[str, Points]) -> Iterator[dict[str, object]]:
    """Each arm's quality, over DPO's and over MM-DPO's, where all are as far away as the nearest method can go.

    Then as far as the second nearest, so that a single short curve does not decide where the others are compared.
    """
    reaches = sorted(made.reach for name, made in curves.items() if name in METHODS)
    for target in dict.fromkeys(TARGET_SHARE * reach for reach in reaches[:2]):
        for name, made in curves.items():
            row: dict[str, object] = {"flip rate": flip, "KL": f"{target:.3f}", "arm": name,
                                      "seeds": " ".join(sorted({q.split("/")[0] for q in made.queries})),
                                      "points": made.kl.shape[1] - 1, "reach": f"{made.reach:.3f}"}  # fmt: skip
            row |= interval_columns("quality", quality_at(made, target))
            for head, base in (("over dpo", "dpo"), ("over mmdpo", "mmdpo")):
                known = base in curves and base != name
                row |= interval_columns(head, lead_at(made, curves[base], target) if known else None)
            yield row


def along_the_curve(flip: str, curves: Mapping[str, Points]) -> Iterator[dict[str, object]]:
    """What each arm gains over DPO at several distances, as far as both go."""
    if "dpo" not in curves:
        return
    for name, made in curves.items():
        if name == "dpo":
            continue
        row: dict[str, object] = {"flip rate": flip, "over dpo": name}
        for distance in DISTANCES:
            reached = distance <= min(made.reach, curves["dpo"].reach)
            row |= interval_columns(f"KL {distance:g}", lead_at(made, curves["dpo"], distance) if reached else None)
        yield row


def chosen_elsewhere(grid: Sequence[Arm], dpo: Arm | None) -> Iterator[dict[str, object]]:
    """The cell that is best on one half of the queries, on both halves, over the paper's cell and over DPO."""
    cells = {arm.name: arm.usual for arm in grid}
    queries = [key for key in next(iter(cells.values())) if all(key in said for said in cells.values())]
    quality = {name: np.array([said[key][0] for key in queries]) for name, said in cells.items()}
    half = halves(queries)
    best = [max(quality, key=lambda name: quality[name][half == side].mean()) for side in (0, 1)]
    taken = {"where it was chosen": [best[0], best[1]], "on the other half": [best[1], best[0]]}
    bases = {"the paper's": quality.get(f"w={PAPER[0]} k={PAPER[1]}")}
    if dpo is not None and all(key in dpo.usual for key in queries):
        bases["dpo"] = np.array([dpo.usual[key][0] for key in queries])
    for name, values in quality.items():
        yield cell_row(name, values, bases)
    for where, names in taken.items():
        mixed = np.where(half == 0, quality[names[0]], quality[names[1]])
        yield cell_row(f"the best ({best[0]}; {best[1]}) {where}", mixed, bases)


def cell_row(name: str, values: np.ndarray, bases: Mapping[str, np.ndarray | None]) -> dict[str, object]:
    """A cell's quality, and what it gains over others."""
    row: dict[str, object] = {
        "cell": name,
        "queries": len(values),
        **interval_columns("quality", mean_interval(values)),
    }
    for head, base in bases.items():
        row |= interval_columns(f"over {head}", None if base is None else paired_difference(values, base))
    return row


def draw(curves: Mapping[tuple[str, str], Points]) -> Figure:
    """Quality over the root of KL, from the reference on; a panel for each flip rate."""
    flips = sorted({flip for flip, _ in curves}, key=float)
    names = list(dict.fromkeys(name for _, name in curves))
    figure = Figure(figsize=(6.4 * len(flips), 4.8), layout="constrained")
    panels = figure.subplots(1, len(flips), sharey=True, squeeze=False)[0]
    for axes, flip in zip(panels, flips, strict=True):
        for (own, name), made in curves.items():
            if own != flip:
                continue
            kl, quality = made.kl.mean(axis=0), made.quality.mean(axis=0)
            colour, style = f"C{names.index(name) % 10}", "-" if name in METHODS else "--"
            fine = np.linspace(0, kl.max(), 200)
            axes.plot(fine, [float(on_curve(kl, quality, x)) for x in fine], style, color=colour, linewidth=1)
            axes.plot(kl, quality, "o" if name in METHODS else "s", color=colour, markersize=4, label=name)
        axes.set_title(f"label flips: {float(flip):.0%}")
        axes.set_xscale("function", functions=(np.sqrt, np.square))
        axes.set_xlim(0)
        axes.set_xlabel("KL to the reference (k3), nats an answer")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("true quality of held-out answers")
    marks = {label: mark for axes in panels for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[-1].legend(list(marks.values()), list(marks), fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


if __name__ == "__main__":
    main()
