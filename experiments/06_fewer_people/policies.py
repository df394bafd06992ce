"""Policies that learn from labels of which people made a share, by whom people were asked about.

    python experiments/06_fewer_people/policies.py [--seeds 0,1,2] [OVERRIDE ...]

Trains a policy on the labels of every arm. What is done is not done again. Writes policies.csv, policies.md and
policies.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from labels import CERTIFIED, HERE, LIMIT, ORDERS, SHARES, run_chain
from matplotlib.figure import Figure

from mmrlhf.metrics.intervals import Interval, mean_interval, paired_difference
from mmrlhf.metrics.policy import k3_estimates
from mmrlhf.sweeps.study_tables import interval_columns, write_csv, write_markdown

# The demo's reward model of the seed proposes, the supervised policy has answered, and DPO, to which only labels speak,
# learns from them in one pass; it is measured on queries that nobody is asked about.
POLICY = [
    "stage=evaluate", "method=dpo", "inputs.shards=stage:labelled/shards", "stages.evaluate.shards=stage:pack",
    "data.critique=full", "stages.reward.head.dimensions=[]", "stages.reward.weights.dimensions=0.0",
    "stages.reward.critique.missing=error", "~responders.untrained", "~responders.service",
    "stages.respond.num_samples=4", "stages.respond.keep_cut=false", "stages.triage.beyond=model",
    "stages.triage.always=[]", "optim.epochs.mmdpo=1", "optim.mmdpo.lr=1e-4", "stages.mmdpo.answers.num_queries=0",
    "stages.mmdpo.training.schedule.val_limit=64", "stages.evaluate.num_samples=2",
    "stages.evaluate.reward_model=null",
]  # fmt: skip
ASKABLE = 1080  # of 1,200 queries, without the audit of 120
EVERYBODY = "random 1"
FIRST = [
    "random 0", EVERYBODY, "unsure 0.25", "random 0.25", "surest 0.25", "unsure 0.5", "random 0.5", "surest 0.5",
    CERTIFIED,
]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on the arms' labels, the most telling arms first; collect true quality of answers to held-out queries."""
    arms = policy_arms()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="seeds of everything, data included (default: %(default)s)")
    parser.add_argument("--arms", default=",".join(arms), help="apart by commas (default: all, in two rounds)")
    parser.add_argument("--out", type=Path, default=Path("outputs/06_fewer_people"), help="the runs' folders")
    parser.add_argument("--results", type=Path, default=HERE, help="where tables and pictures go")
    options, overrides = parser.parse_known_args(arguments)
    seeds, wanted, out = list(map(int, options.seeds.split(","))), options.arms.split(","), options.out.resolve()
    if unknown := [arm for arm in wanted if arm not in arms]:
        parser.error(f"there is no arm {unknown[0]!r}; one of {', '.join(arms)}")
    for names in ([name for name in FIRST if name in wanted], [name for name in wanted if name not in FIRST]):
        for seed in seeds:
            for arm in names:
                folder = policy_folder(out, arm, seed)
                if not (folder / "artifacts" / "evaluate").exists():
                    run_chain(folder, seed, [*POLICY, *arms[arm]], overrides)
    found = {arm: {seed: read_policy(policy_folder(out, arm, seed), seed) for seed in seeds} for arm in arms}
    rows = [policy_row(arm, own, found[EVERYBODY]) for arm, own in found.items() if any(own.values())]
    if not rows:
        sys.exit(f"no run below {out} has finished")
    write_results(options.results, rows)


def write_results(folder: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write policies.csv, policies.md and policies.png."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "policies.csv", rows)
    write_markdown(folder / "policies.md", rows)
    draw_policies(rows).savefig(folder / "policies.png", dpi=150)


def policy_folder(out: Path, arm: str, seed: int) -> Path:
    """Of the run of an arm."""
    return out / f"policy-{arm.replace(' ', '_')}-{seed}"


@dataclass(frozen=True)
class Trained:
    """One arm's policy of one seed: the share that people labelled; (seed/query) -> mean quality and k3 of answers."""

    share: float
    answers: Mapping[str, tuple[float, float]]


def read_policy(folder: Path, seed: int) -> Trained | None:
    """What a run left; None, and a line, where it did not finish."""
    samples = folder / "artifacts" / "evaluate" / "samples.jsonl"
    if not samples.exists():
        print(f"left out, because it did not finish: {folder.name}")
        return None
    said: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with samples.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            ratio = float(row["logprob"]) - float(row["reference_logprob"])
            said[f"{seed}/{row['key']}"].append((float(row["quality"]), float(k3_estimates([ratio])[0])))
    triage = json.loads((folder / "artifacts" / "triage" / "metrics.json").read_text(encoding="utf-8"))
    means = {
        key: (float(np.mean([q for q, _ in own])), float(np.mean([k for _, k in own]))) for key, own in said.items()
    }
    return Trained(triage["asked"] / (triage["asked"] + triage["automatic"]), means)


def policy_row(
    arm: str, own: Mapping[int, Trained | None], everybody: Mapping[int, Trained | None]
) -> dict[str, object]:
    """Quality over all seeds, KL, and what is gained over people's labels alone, paired by query."""
    done = {seed: each for seed, each in own.items() if each is not None}
    answers = {key: value for each in done.values() for key, value in each.answers.items()}
    base = {key: value for each in everybody.values() if each is not None for key, value in each.answers.items()}
    both = [key for key in answers if key in base]
    measures: dict[str, Interval | None] = {
        "quality": mean_interval([quality for quality, _ in answers.values()]),
        "over everybody": paired_difference([answers[key][0] for key in both], [base[key][0] for key in both])
        if both and arm != EVERYBODY else None,
        "kl": mean_interval([distance for _, distance in answers.values()]),
    }  # fmt: skip
    row: dict[str, object] = {"arm": arm, "share": round(float(np.mean([each.share for each in done.values()])), 3),
                              "seeds": " ".join(map(str, done)), "queries": len(answers)}  # fmt: skip
    for name, measure in measures.items():
        row |= interval_columns(name, measure)
    by_seed = (np.mean([quality for quality, _ in each.answers.values()]) for each in done.values())
    return row | {"quality by seed": " ".join(f"{value:.3f}" for value in by_seed)}


def draw_policies(rows: Sequence[Mapping[str, object]]) -> Figure:
    """Quality, with its interval, against the share of people."""
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for place, arm in enumerate((*ORDERS, CERTIFIED)):
        own = [row for row in rows if str(row["arm"]).split()[0] == arm and row["quality low"] != ""]
        at, mean, low, high = (
            np.array([float(str(row[name])) for row in own])
            for name in ("share", "quality", "quality low", "quality high")
        )
        line = "o-" if arm in ORDERS else "D"
        axes.errorbar(at + 0.008 * place, mean, yerr=[mean - low, high - mean], fmt=line, label=arm, capsize=2)
    axes.set_xlabel("share of queries that people label")
    axes.set_ylabel("true quality of held-out answers")
    axes.grid(alpha=0.4)
    axes.legend()
    return figure


def policy_arms() -> dict[str, list[str]]:
    """Name -> settings of stage triage; a limit of 0 certifies nothing, and where nobody is asked nobody has labels."""
    found = {}
    for share in SHARES:
        for order in ORDERS if 0 < share < 1 else ORDERS[:1]:
            budget = [f"stages.triage.budget.queries={round(share * ASKABLE)}", "stages.triage.limit=0"]
            nobody = [] if share else ["~stages.labelled.people.asked"]
            found[f"{order} {share:g}"] = [*budget, f"stages.triage.order={order}", *nobody]
    return found | {CERTIFIED: [f"stages.triage.limit={LIMIT}"]}


if __name__ == "__main__":
    main()
