"""Trains every arm of the study and compares them on the same held-out queries.

    python experiments/02_critiques/study.py [--seeds 0,1,2] [OVERRIDE ...]

Overrides go to every run of run.py (`scale.num_groups=12000 data.holdout=0.15` for a larger world, `scale=tiny` for a
try). What is done is not done again: stages come from the artefact store, scores stay in the runs' folders. A run that
fails is named and does not stop the others. Writes results.csv, results.md and results.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmrlhf.chain.runtime import Runtime
from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.scoring import Scoring
from mmrlhf.metrics.ranking import accuracy_difference, accuracy_report
from mmrlhf.reporting.accuracy import true_pairs
from mmrlhf.shapes.claims import hops
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.terminal.words import add_row, new_table, show
from mmrlhf.types import PreferenceGroup

HERE = Path(__file__).resolve().parent
GROUPS_PER_BATCH = 96
SECOND_ROUND = "inputs.reward_model=stage:reward_self/model"
CHECKS = "stages.reward.head.dimensions=[check_1,check_2,check_3]"


@dataclass(frozen=True)
class Arm:
    """What an arm trains, or which annotated critiques the model of another arm is given at test."""

    name: str
    overrides: tuple[str, ...] = ()
    given_to: str = ""
    kind: str = ""


ARMS = (
    Arm("scalar", ("data.critique=none",)),
    Arm("scalar + sub-checks", ("data.critique=none", CHECKS, "stages.reward.weights.dimensions=1.0")),
    Arm("critique, teacher-forced", ("data.critique=full",)),
    Arm(
        "critique, second round on the same",
        ("data.critique=full", SECOND_ROUND, "stages.reward_self.critique.source=oracle"),
    ),
    Arm("critique, second round on its own", ("data.critique=full", SECOND_ROUND)),
    Arm("given, with verdict words", given_to="critique, teacher-forced", kind="full"),
    Arm("given, without verdict words", given_to="critique, teacher-forced", kind="evidence"),
)
JUDGES = ("truth", "annotators")
FORM = "{:.3f} [{:.3f}, {:.3f}]"
NUM_SHOWN = 4  # columns of results.md that fit on a terminal


@dataclass
class Outcome:
    """Which pairs an arm ranks right: query of each pair (P,), right (P,), looks (P,) as `looks` counts them."""

    keys: list[str] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    looks: list[str] = field(default_factory=list)


# seed -> judge -> what came out
Outcomes = Mapping[int, Mapping[str, Outcome]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the arms, then collect what they left."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="seeds of everything, data included (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/02_critiques"), help="the runs' folders")
    parser.add_argument("--results", type=Path, default=HERE, help="where tables and picture go")
    parser.add_argument("--collect", action="store_true", help="run nothing, only collect")
    options, overrides = parser.parse_known_args(arguments)
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if not options.collect:
        for seed in seeds:
            for arm in ARMS:
                run(arm, seed, options.out.absolute(), overrides)
    found = {arm.name: collect(arm, seeds, options.out.absolute()) for arm in ARMS}
    if not found[ARMS[0].name]:
        sys.exit(f"no run of '{ARMS[0].name}', with which all arms are compared, has finished below {options.out}")
    write_results(options.results, list(tabulate(found)))


def run(arm: Arm, seed: int, out: Path, overrides: Sequence[str]) -> None:
    """Train one arm up to its scores of the held-out queries, or give critiques to the model of another."""
    folder = folder_of(arm, seed, out)
    if arm.given_to:
        return give(folder, arm.kind) if (folder / "artifacts" / "score").exists() else None
    asked = ["stage=score", f"seed={seed}", f"hydra.run.dir={folder}", "stages.score.limit=1", "logger=none"]
    command = [sys.executable, "run.py", *asked, *arm.overrides, *overrides]
    print(" ".join(["python", *command[1:]]), flush=True)
    if subprocess.run(command, check=False, cwd=HERE.parents[1]).returncode != 0:
        print(f"failed: {arm.name}, seed {seed}", flush=True)


def folder_of(arm: Arm, seed: int, out: Path) -> Path:
    """The folder of the run that trained the model that an arm asks."""
    name = "".join(letter if letter.isalnum() else "_" for letter in arm.given_to or arm.name)
    return out / f"{name}-{seed}"


def give(folder: Path, kind: str) -> None:
    """Score the held-out queries of a run with annotated critiques of one kind in context."""
    model = folder / "artifacts" / "reward" / "model"
    index = Index.load(folder / "artifacts" / "pack")
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="auto"))
    judge = RewardModel.from_pretrained(model)
    scoring = Scoring(index, judge, model, GROUPS_PER_BATCH, runtime, given_kind=kind)
    scoring.given(table_of(folder, kind), held_out(folder, index))


def table_of(folder: Path, kind: str) -> Path:
    """The rewards of a run: behind given critiques of a kind, or its own where `kind` is empty."""
    return folder / f"rewards_given_{kind}" if kind else folder / "artifacts" / "score" / "rewards"


def held_out(folder: Path, index: Index) -> np.ndarray:
    """The rows that no arm was trained on, by the settings that its scores were made with."""
    settings = json.loads((folder / "artifacts" / "score" / "artifact.json").read_text(encoding="utf-8"))["settings"]
    return index.split("heldout", settings["holdout"])


def collect(arm: Arm, seeds: Sequence[int], out: Path) -> dict[int, dict[str, Outcome]]:
    """What an arm left, seed by seed; a seed whose run did not finish is named and left out."""
    found = {}
    for seed in seeds:
        outcome = judged(folder_of(arm, seed, out), arm.kind)
        if outcome is None:
            print(f"left out, because it did not finish: {arm.name}, seed {seed}")
        else:
            found[seed] = outcome
    return found


def judged(folder: Path, kind: str) -> dict[str, Outcome] | None:
    """Say, by the truth and by the annotators, which held-out pairs a run ranks right; None before it has finished."""
    if not table_of(folder, kind).exists():
        return None
    table, index = SideCar.load(table_of(folder, kind)), Index.load(folder / "artifacts" / "pack")
    groups = [index.read(int(row), media=False) for row in held_out(folder, index)]
    if not {group.key for group in groups} <= table.keys():
        return None
    found = {judge: Outcome() for judge in JUDGES}
    for group in groups:
        scores = table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
        for judge, pairs in zip(JUDGES, (true_pairs(group) or (), group.ranked_pairs()), strict=True):
            outcome = found[judge]
            outcome.keys.extend(group.key for _ in pairs)
            outcome.right.extend(scores[chosen] > scores[rejected] for chosen, rejected in pairs)
            outcome.looks.extend(looks(group, chosen, rejected) for chosen, rejected in pairs)
    return found


def looks(group: PreferenceGroup, chosen: int, rejected: int) -> str:
    """How many looks the claims take that are true of one response only: 1 or 2, or 0 where none tells them apart."""
    claims = group.meta["claims"]
    differing = [
        kind for kind, a, b in zip(group.meta["kinds"], claims[chosen], claims[rejected], strict=True) if a != b
    ]
    return str(hops(tuple(differing))) if differing else "0"


def tabulate(found: Mapping[str, Outcomes]) -> Iterator[dict[str, object]]:
    """A row for every judge and arm: accuracy with intervals over all seeds' queries, and ahead of the scalar arm.

    Raises ValueError where an arm and the scalar arm were not asked about the same pairs.
    """
    for judge in JUDGES:
        for arm, outcomes in found.items():
            seeds = [seed for seed in outcomes if seed in found[ARMS[0].name]]
            if not seeds:
                continue
            own, base = (together(each, judge, seeds) for each in (outcomes, found[ARMS[0].name]))
            if own.keys != base.keys:
                raise ValueError(f"'{arm}' and '{ARMS[0].name}' ranked other pairs: made with other overrides?")
            for part in ("all", *sorted(set(own.looks))):
                yield {
                    "judge": judge, "arm": arm, "looks": part, **measured(own, base, part),
                    "seeds": " ".join(f"{seed}:{np.mean(outcomes[seed][judge].right):.4f}" for seed in seeds)
                    if part == "all" else "",
                }  # fmt: skip


def together(outcomes: Outcomes, judge: str, seeds: Sequence[int]) -> Outcome:
    """The pairs of several seeds, each with queries of its own."""
    whole = Outcome()
    for seed in seeds:
        part = outcomes[seed][judge]
        whole.keys += [f"{seed}/{key}" for key in part.keys]
        whole.right += part.right
        whole.looks += part.looks
    return whole


def measured(own: Outcome, base: Outcome, part: str) -> dict[str, object]:
    """Accuracies of an arm on the pairs that take so many looks ("all": on all), and how far it is ahead of another."""
    chosen = [number for number, value in enumerate(own.looks) if part in ("all", value)]
    keys, right = [own.keys[i] for i in chosen], np.array([own.right[i] for i in chosen])
    report = accuracy_report(keys, right.astype(float), np.full(len(chosen), 0.5))
    ahead = accuracy_difference(keys, right, [base.right[i] for i in chosen])
    numbers = {"acc": report["acc"], "acc_plus": report["acc_plus"], "ahead": ahead["acc"]}
    return {
        "queries": report["num_queries"],
        "pairs": report["num_pairs"],
        **{
            f"{name}_{end}": round(each[end], 4) if each[end] is not None else ""
            for name, each in numbers.items()
            for end in ("mean", "low", "high")
        },
    }


def write_results(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write results.csv, results.md and results.png, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    heads, cells = summary(rows)
    lines = ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *cells)]
    (folder / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    console_table = new_table(*heads[:NUM_SHOWN], title="arms, 95% intervals over queries of all seeds")
    for line in cells:
        add_row(console_table, *line[:NUM_SHOWN])
    show(console_table)
    draw(rows).savefig(folder / "results.png", dpi=150)
    print(f"results  {folder / 'results.csv'}, results.md, results.png")


def summary(rows: Sequence[Mapping[str, object]]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table that one reads: a line for each arm."""
    columns = {
        "ACC, truth": ("truth", "all", "acc"),
        "ahead of scalar": ("truth", "all", "ahead"),
        "ACC+, truth": ("truth", "all", "acc_plus"),
        "one look": ("truth", "1", "acc"),
        "two looks": ("truth", "2", "acc"),
        "ACC, annotators": ("annotators", "all", "acc"),
    }
    found = {(row["arm"], row["judge"], row["looks"]): row for row in rows}
    cells = []
    for arm in dict.fromkeys(str(row["arm"]) for row in rows):
        measures = [(found.get((arm, judge, part)), measure) for judge, part, measure in columns.values()]
        shown = [FORM.format(*interval(row, name)) if row is not None else "" for row, name in measures]
        cells.append([arm, *shown, str(found[arm, "truth", "all"]["seeds"])])
    return ["arm", *columns, "ACC, truth, by seed"], cells


def interval(row: Mapping[str, object], measure: str) -> tuple[float, float, float]:
    """Mean and both ends of a measure."""
    mean, low, high = (float(str(row[f"{measure}_{end}"])) for end in ("mean", "low", "high"))
    return mean, low, high


def draw(rows: Sequence[Mapping[str, object]]) -> Figure:
    """Draw accuracy with 95% intervals over queries: all pairs by both judges, and by looks by the truth."""
    panels = [
        ("all pairs, by the truth", {"all": ("truth", "all", "#2f6fd0")}),
        ("all pairs, by the annotators", {"all": ("annotators", "all", "#2f6fd0")}),
        ("by the truth", {"one look": ("truth", "1", "#2a9d6a"), "two looks": ("truth", "2", "#c4572c")}),
    ]
    names = list(dict.fromkeys(str(row["arm"]) for row in rows))[::-1]
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        for number, (label, (judge, part, colour)) in enumerate(series.items()):
            own = {row["arm"]: row for row in rows if (row["judge"], row["looks"]) == (judge, part)}
            _intervals(axes, {names.index(str(arm)) - 0.18 * number: own[arm] for arm in own}, label, colour)
        axes.axvline(0.5, color="#5c6878", linewidth=1, linestyle="--")
        axes.set_title(title)
        axes.set_xlabel("ACC on held-out pairs")
        axes.grid(axis="x", alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            axes.legend(fontsize=8, loc="lower right")
    figure.axes[0].set_yticks(range(len(names)), names)
    return figure


def _intervals(axes: Axes, rows: Mapping[float, Mapping[str, object]], label: str, colour: str) -> None:
    for number, (height, row) in enumerate(rows.items()):
        mean, low, high = interval(row, "acc")
        axes.plot([low, high], [height, height], color=colour, linewidth=3, alpha=0.45)
        axes.plot([mean], [height], "o", color=colour, label=label if number == 0 else None)


if __name__ == "__main__":
    main()
