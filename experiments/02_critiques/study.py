"""Trains every arm of the study and compares them on the same held-out queries.

    python experiments/02_critiques/study.py [seeds=0,1,2] [OVERRIDE ...]

Overrides go to every `run.py` (scale=tiny for a minute's try). What is done already is not done again: stages come from
the artefact store, and an arm's scores stay in the outputs. Results: results.csv and results.png beside this file, or
in the folder that `into=DIR` names (for scale=tiny, the outputs).
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning as L
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mmrlhf.data.index import Index
from mmrlhf.data.sidecar import SideCar
from mmrlhf.metrics.ranking import accuracy_difference, accuracy_report
from mmrlhf.shapes.claims import hops
from mmrlhf.stages.ranking_report import true_pairs
from mmrlhf.stages.reward_model import RewardModel
from mmrlhf.stages.runtime import Runtime
from mmrlhf.stages.scoring import Scoring
from mmrlhf.types import PreferenceGroup

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
OUTPUTS = Path("outputs/critiques")
# 10,200 queries to learn from and 1,800 held out in each seed: 5,400 that no arm has seen
SIZE = ["scale.num_groups=12000", "data.holdout=0.15"]
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


@dataclass(frozen=True)
class Outcome:
    """Which pairs an arm ranks right in one seed: keys (P,), right (P,), looks (P,) as `looks` counts them."""

    keys: list[str]
    right: list[bool]
    looks: list[str]


def main(words: Sequence[str]) -> None:
    """Run the study with the command line's words."""
    seeds = [int(seed) for seed in _take(words, "seeds", "0,1,2").split(",")]
    into = Path(_take(words, "into", str(OUTPUTS if "scale=tiny" in words else HERE)))
    extra = [word for word in words if not word.startswith(("seeds=", "into="))]
    outcomes: dict[tuple[str, str], list[Outcome]] = {}
    for seed in seeds:
        folders = {arm.name: train(arm, seed, extra) for arm in ARMS if not arm.given_to}
        for arm in ARMS:
            folder = folders[arm.given_to or arm.name]
            table = give(folder, arm.kind) if arm.given_to else SideCar.load(folder / "artifacts" / "score" / "rewards")
            for judge, outcome in compare(folder, table, seed):
                outcomes.setdefault((judge, arm.name), []).append(outcome)
    into.mkdir(parents=True, exist_ok=True)
    rows = list(tabulate(outcomes))
    write(into / "results.csv", rows)
    draw(into / "results.png", rows)
    for row in rows:
        print(" ".join(f"{str(row[name]):>{width}}" for name, width in WIDTHS.items()))


def train(arm: Arm, seed: int, extra: Sequence[str]) -> Path:
    """Run one arm up to its scores of the held-out queries; returns the run's folder."""
    size = [word for word in SIZE if "scale=tiny" not in extra]
    folder = OUTPUTS.absolute() / f"{_plain(arm.name)}-{seed}{'-tiny' if 'scale=tiny' in extra else ''}"
    asked = ["stage=score", f"seed={seed}", f"hydra.run.dir={folder}", "stages.score.limit=1", "logger=none"]
    command = [sys.executable, str(PROJECT / "run.py"), *asked, *size, *arm.overrides, *extra]
    print("+", *command[1:], flush=True)
    subprocess.run(command, check=True)
    return folder


def give(folder: Path, kind: str) -> SideCar:
    """Score the held-out queries of a run with annotated critiques of one kind in context."""
    artifacts = folder / "artifacts"
    model = artifacts / "reward" / "model"
    index = Index.load(artifacts / "pack")
    runtime = Runtime(trainer=partial(L.Trainer, accelerator="auto"))
    judge = RewardModel.from_pretrained(model)
    return Scoring(index, judge, model, 96, runtime, given_kind=kind).given(
        folder / f"rewards_given_{kind}", held_out(folder, index)
    )


def compare(folder: Path, table: SideCar, seed: int) -> Iterator[tuple[str, Outcome]]:
    """Say, by the truth and by the annotators, which held-out pairs are right."""
    index = Index.load(folder / "artifacts" / "pack")
    heldout = held_out(folder, index)
    found = {judge: Outcome([], [], []) for judge in ("truth", "annotators")}
    for row in heldout:
        group = index.read(int(row))
        scores = table.lookup(group.key, [response.hash for response in group.responses])["reward"].tolist()
        for judge, pairs in (("truth", true_pairs(group) or ()), ("annotators", group.ranked_pairs())):
            outcome = found[judge]
            outcome.keys.extend(f"{seed}/{group.key}" for _ in pairs)
            outcome.right.extend(scores[chosen] > scores[rejected] for chosen, rejected in pairs)
            outcome.looks.extend(looks(group, chosen, rejected) for chosen, rejected in pairs)
    yield from found.items()


def looks(group: PreferenceGroup, chosen: int, rejected: int) -> str:
    """How many looks the claims take that are true of one response only: 1 or 2, or 0 where none tells them apart."""
    claims = group.meta["claims"]
    differing = [
        kind for kind, a, b in zip(group.meta["kinds"], claims[chosen], claims[rejected], strict=True) if a != b
    ]
    return str(hops(tuple(differing))) if differing else "0"


def held_out(folder: Path, index: Index) -> np.ndarray:
    """The rows that no arm was trained on, by the settings that its scores were made with."""
    settings = json.loads((folder / "artifacts" / "score" / "artifact.json").read_text())["settings"]
    return index.split("heldout", settings["holdout"])


def tabulate(outcomes: dict[tuple[str, str], list[Outcome]]) -> Iterator[dict[str, object]]:
    """A row for every judge and arm: accuracy with intervals over all seeds' queries, and ahead of the scalar arm."""
    for (judge, arm), parts in outcomes.items():
        whole, base = _together(parts), _together(outcomes[judge, ARMS[0].name])
        for part in ("all", *sorted(set(whole.looks))):
            own = [i for i, value in enumerate(whole.looks) if part in ("all", value)]
            keys, right = [whole.keys[i] for i in own], np.array([whole.right[i] for i in own])
            report = accuracy_report(keys, right.astype(float), np.full(len(own), 0.5))
            ahead = accuracy_difference(keys, right, [base.right[i] for i in own])
            seeds = [float(np.mean(seed.right)) for seed in parts] if part == "all" else []
            yield {
                "judge": judge,
                "arm": arm,
                "looks": part,
                **{f"acc_{end}": f"{report['acc'][end]:.4f}" for end in ("mean", "low", "high")},
                **{f"acc_plus_{end}": f"{report['acc_plus'][end]:.4f}" for end in ("mean", "low", "high")},
                **{f"ahead_{end}": f"{ahead['acc'][end]:+.4f}" for end in ("mean", "low", "high")},
                "seeds": " ".join(f"{value:.4f}" for value in seeds),
                "queries": report["num_queries"],
            }


WIDTHS = {"judge": 10, "arm": 34, "looks": 5, "acc_mean": 8, "acc_low": 8, "acc_high": 8, "ahead_mean": 8, "seeds": 24}


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write the table as CSV."""
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def draw(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Draw accuracy by both judges, all pairs together, with 95% intervals over queries."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for place, judge in enumerate(("truth", "annotators")):
        axes = figure.add_subplot(1, 2, place + 1)
        shown = [row for row in rows if row["judge"] == judge and row["looks"] == "all"][::-1]
        for height, row in enumerate(shown):
            low, mean, high = (float(str(row[f"acc_{end}"])) for end in ("low", "mean", "high"))
            axes.plot([low, high], [height, height], color="#2f6fd0", linewidth=3, alpha=0.45)
            axes.plot([mean], [height], "o", color="#2f6fd0")
        axes.set_yticks(range(len(shown)), [str(row["arm"]) for row in shown] if place == 0 else [""] * len(shown))
        axes.axvline(0.5, color="#5c6878", linewidth=1, linestyle="--")
        axes.set_xlabel(f"ACC on held-out pairs, by {judge}")
        axes.grid(axis="x", alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _together(parts: Sequence[Outcome]) -> Outcome:
    return Outcome(*([item for part in parts for item in getattr(part, name)] for name in ("keys", "right", "looks")))


def _take(words: Sequence[str], name: str, default: str) -> str:
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), default)


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


if __name__ == "__main__":
    main(sys.argv[1:])
