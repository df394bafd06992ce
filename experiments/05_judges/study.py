"""Judges by the pairs they rank right, by the answers they choose, and by what their critiques cost.

    python experiments/05_judges/study.py [--seeds 0,1,2] [--judges none,short,...] [OVERRIDE ...]
    python experiments/05_judges/study.py --rates     # queries a second of processor time; nothing else is run

Every judge scores held-out annotated responses (`stage=score`) and the same 16 answers of the supervised policy to each
held-out query (`stage=best_of_n`). What is done is not done again; overrides go to every run. Writes judges.csv,
judges.md, curves.csv and judges.png; with --rates, rates.csv and rates.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from mmrlhf.inference.reward_model import RewardModel
from mmrlhf.inference.settings import CritiqueSettings
from mmrlhf.metrics.intervals import Interval, mean_interval, paired_difference
from mmrlhf.metrics.ranking import accuracy_report
from mmrlhf.reporting.accuracy import true_pairs
from mmrlhf.reporting.best_answers import Judged
from mmrlhf.responders.answered import DRAWN
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.sweeps.study_tables import interval_columns, write_csv, write_markdown
from mmrlhf.sweeps.turned_rankings import turned_rankings

HERE = Path(__file__).resolve().parent
SIZES = (1, 2, 4, 8, 16)
ASKED = ("score", "best_rewards")  # the stages in which a judge writes critiques
SHORT = (
    "logger=none", "stages.score.limit=1", "stages.score.compare_given=false", "stages.best_answers.limit=1",
    f"stages.best_answers.num_samples={SIZES[-1]}",
)  # fmt: skip
# a world of turned rankings beside the world; what is measured is measured in the world as it is
TURNED = (*turned_rankings("0.32"), "stages.reward.shards=stage:pack_turned")
LINE, ROUGH = "#2f6fd0", "#9aa5b1"
TIMED, ROUNDS = 48, 3  # queries of a timing, and how often it is taken


@dataclass(frozen=True)
class JudgeArm:
    """A judge: what is set where it learns, and where it is asked."""

    name: str
    learns: tuple[str, ...] = ()
    asked: Mapping[str, float] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """Its settings on the command line."""
        return [*self.learns, *(f"stages.{s}.critiques.{k}={v:g}" for s in ASKED for k, v in self.asked.items())]

    @property
    def folder(self) -> str:
        """Of its runs, without their seed."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)


JUDGES = (
    JudgeArm("none", ("data.critique=none",)),
    JudgeArm("full"),
    JudgeArm("short", ("data.critique=short",)),
    JudgeArm("full, 16 tokens", asked={"max_tokens": 16}),
    JudgeArm("full, 32 tokens", asked={"max_tokens": 32}),
    JudgeArm("full, 64 tokens", asked={"max_tokens": 64}),
    JudgeArm("full, 256 tokens", asked={"max_tokens": 256}),
    JudgeArm("full, 4 critiques", asked={"num_samples": 4, "temperature": 1}),
    JudgeArm("full, turned", TURNED),
)
RANDOM, TRUTH, OURS, PLAIN = "random", "truth", "full", "none"


@dataclass
class Found:
    """What a judge did on one seed.

    right: by `truth`, by `annotators`, and on the policy's `own` answers: (query of each pair, whether it was right);
    best: for each query the expected true quality of its choice among n answers (SIZES); tokens of a critique.
    """

    right: dict[str, tuple[list[str], list[bool]]] = field(default_factory=dict)
    best: dict[str, list[float]] = field(default_factory=dict)
    tokens: float = 0.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the judges, then collect what they left; or time them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="seeds of everything, data included (default: %(default)s)")
    parser.add_argument("--judges", default=";".join(judge.name for judge in JUDGES), help="apart by ; (default: all)")
    parser.add_argument("--out", type=Path, default=Path("outputs/05_judges"), help="the runs' folders")
    parser.add_argument("--results", type=Path, default=HERE, help="where tables and pictures go")
    parser.add_argument("--collect", action="store_true", help="run nothing, only collect")
    parser.add_argument("--rates", action="store_true", help="only time the judges of the first seed")
    options, overrides = parser.parse_known_args(arguments)
    judges = [judge for judge in JUDGES if judge.name in options.judges.split(";")]
    seeds, out = options.seeds.split(","), options.out.resolve()
    if options.rates:
        return write_rates(options.results, judges, seeds[0], out)
    if not options.collect:
        for seed in seeds:
            for judge in judges:
                run(judge, seed, out, overrides)
    found = {judge.name: read_judge(judge, seeds, out) for judge in judges}
    found = {name: own for name, own in found.items() if own}
    if not found:
        sys.exit(f"no judge below {out} has finished")
    write_results(options.results, found | ends_of_the_scale(found, judges, out))


def run(judge: JudgeArm, seed: str, out: Path, overrides: Sequence[str]) -> None:
    """Both stages of a judge in one process, unless they are done; a failure does not stop the others."""
    folder = out / f"{judge.folder}-{seed}"
    if all(made(folder, stage) for stage in ("score", "best_of_n")):
        return
    words = ["stage=score,best_of_n", f"seed={seed}", *SHORT, *judge.words, f"hydra.sweep.dir={folder}", *overrides]
    command = [sys.executable, "run.py", "-m", *words]
    print(" ".join(["python", *command[1:]]), flush=True)
    subprocess.run(command, check=False, cwd=HERE.parents[1])


def made(folder: Path, stage: str) -> Path | None:
    """A finished stage of a judge's runs."""
    return next(
        (path for path in sorted(folder.glob(f"*/artifacts/{stage}")) if (path / "metrics.json").exists()), None
    )


# ---- what came out


def read_judge(judge: JudgeArm, seeds: Sequence[str], out: Path) -> dict[str, Found]:
    """What a judge did, seed by seed; a seed that did not finish is named and left out."""
    found = {}
    for seed in seeds:
        folder = out / f"{judge.folder}-{seed}"
        if made(folder, "score") and made(folder, "best_of_n"):
            found[seed] = read_seed(folder, seed)
        else:
            print(f"left out, because it did not finish: {judge.name}, seed {seed}")
    return found


def read_seed(folder: Path, seed: str) -> Found:
    """ACC on annotated and on the policy's own answers, and the best of n."""
    score, rewards, answers = (made(folder, stage) for stage in ("score", "best_rewards", "best_answers"))
    pack = next(folder.glob("*/artifacts/pack"))
    assert score is not None and rewards is not None and answers is not None
    table, index = SideCar.load(score / "rewards", ["reward", "critique_tokens"]), Index.load(pack)
    holdout = json.loads((score / "artifact.json").read_text(encoding="utf-8"))["settings"]["holdout"]
    found = Found({"truth": ([], []), "annotators": ([], []), "own": ([], [])})
    tokens: list[float] = []
    for row in index.split("heldout", holdout):
        group = index.read(int(row), media=False)
        said = table.lookup(group.key, [response.hash for response in group.responses])
        scores = said["reward"].tolist()
        tokens += said["critique_tokens"].tolist()
        for name, pairs in (("truth", true_pairs(group) or ()), ("annotators", group.ranked_pairs())):
            note(found, name, f"{seed}/{group.key}", [scores[one] > scores[other] for one, other in pairs])
    found.tokens = float(np.mean(tokens))
    for judged in answered(answers / "shards", rewards / "rewards"):
        key, quality = f"{seed}/{judged.key}", list(judged.quality or ())
        better = [(i, j) for i, a in enumerate(quality) for j, b in enumerate(quality) if a > b]
        note(found, "own", key, [judged.rewards[one] > judged.rewards[other] for one, other in better])
        found.best[key] = best_of(judged)
    return found


def note(found: Found, name: str, key: str, right: Sequence[bool]) -> None:
    """Add a query's pairs."""
    found.right[name][0].extend(key for _ in right)
    found.right[name][1].extend(right)


def answered(shards: Path, rewards: Path | None) -> Iterator[Judged]:
    """The held-out queries with all answers of the policy, as a judge scores them; without one, as the truth does."""
    index, table = Index.load(shards), SideCar.load(rewards, ["reward"]) if rewards else None
    for row in range(len(index)):
        group = index.read(row, media=False)
        if sum(group.meta[DRAWN]) < SIZES[-1] or (table is not None and group.key not in table.keys()):
            continue
        quality = group.meta["quality"]
        hashes = [response.hash for response in group.responses]
        scores = table.lookup(group.key, hashes)["reward"].tolist() if table is not None else quality
        yield Judged(group.key, scores, group.meta[DRAWN], quality)


def best_of(judged: Judged) -> list[float]:
    """Expected quality of the best of each size."""
    return [judged.best_of(size)[1] or 0.0 for size in SIZES]


def ends_of_the_scale(
    found: Mapping[str, Mapping[str, Found]], judges: Sequence[JudgeArm], out: Path
) -> dict[str, dict[str, Found]]:
    """A judge that knows the truth, and one that draws lots, on the seeds that are there."""
    ends: dict[str, dict[str, Found]] = {RANDOM: {}, TRUTH: {}}
    for judge in judges:
        for seed, own in found.get(judge.name, {}).items():
            answers = made(out / f"{judge.folder}-{seed}", "best_answers")
            if seed in ends[TRUTH] or answers is None:
                continue
            best = {f"{seed}/{each.key}": best_of(each) for each in answered(answers / "shards", None)}
            ends[TRUTH][seed] = Found(best=best)
            ends[RANDOM][seed] = Found(best={key: [values[0]] * len(SIZES) for key, values in own.best.items()})
    return ends


# ---- tables


def write_results(folder: Path, found: Mapping[str, Mapping[str, Found]]) -> None:
    """Write and print the table of judges, the curves over n, and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [judge_row(name, own, found.get(OURS, {})) for name, own in found.items()]
    write_csv(folder / "judges.csv", rows)
    write_markdown(folder / "judges.md", rows)
    curves = [
        {
            "judge": name,
            "n": size,
            **interval_columns("quality", mean_interval([values[place] for values in chosen(own).values()])),
        }
        for name, own in found.items()
        for place, size in enumerate(SIZES)
    ]
    write_csv(folder / "curves.csv", curves)
    draw(found, rows).savefig(folder / "judges.png", dpi=130)
    learned = [row for row in rows if row["ACC, truth"] != ""]
    if len(learned) > 2:
        acc, quality = ([float(str(row[name])) for row in learned] for name in ("ACC, truth", f"best of {SIZES[-1]}"))
        rank_correlation = float(np.asarray(spearmanr(acc, quality))[0])
        print(f"rank correlation of ACC by truth and quality over {len(learned)} judges: {rank_correlation:.3f}")


def chosen(own: Mapping[str, Found]) -> dict[str, list[float]]:
    """The best of n on all seeds' queries."""
    return {key: values for each in own.values() for key, values in each.best.items()}


def judge_row(name: str, own: Mapping[str, Found], ours: Mapping[str, Found]) -> dict[str, object]:
    """A judge's ACC, what its choice is worth, what it gains over n = 1 and over our judge."""
    row: dict[str, object] = {"judge": name, "seeds": " ".join(own)}
    for kind in ("truth", "annotators", "own"):
        pairs = [each.right[kind] for each in own.values() if kind in each.right]
        keys = [key for part in pairs for key in part[0]]
        right = [value for part in pairs for value in part[1]]
        report = accuracy_report(keys, np.array(right, float), np.full(len(right), 0.5)) if keys else None
        row |= interval_columns(f"ACC, {kind}", Interval(**report["acc"]) if report else None)
        if kind == "truth":
            row |= interval_columns("ACC+, truth", Interval(**report["acc_plus"]) if report else None)
    best, base = chosen(own), chosen(ours)
    both = [key for key in best if key in base]
    row |= interval_columns(f"best of {SIZES[-1]}", mean_interval([values[-1] for values in best.values()]))
    row |= interval_columns("over one", mean_interval([values[-1] - values[0] for values in best.values()]))
    compared = paired_difference([best[key][-1] for key in both], [base[key][-1] for key in both]) if both else None
    row |= interval_columns(f"over {OURS}", compared if name != OURS else None)
    row["tokens"] = f"{np.mean([each.tokens for each in own.values()]):.1f}" if row["ACC, truth"] != "" else ""
    row["ACC by seed"] = " ".join(f"{np.mean(each.right['truth'][1]):.3f}" for each in own.values() if each.right)
    row["best by seed"] = " ".join(f"{np.mean([v[-1] for v in each.best.values()]):.3f}" for each in own.values())
    return row


def draw(found: Mapping[str, Mapping[str, Found]], rows: Sequence[Mapping[str, object]]) -> Figure:
    """Quality of the choice over n, and over ACC: a large dot for each judge, a small one for each of its seeds."""
    figure = Figure(figsize=(12.5, 4.6), layout="constrained")
    curve, scatter = figure.subplots(1, 2)
    for number, (row, (name, own)) in enumerate(zip(rows, found.items(), strict=True)):
        style = {"color": "black" if name in (RANDOM, TRUTH) else f"C{number % 10}", "label": name}
        curve.plot(
            SIZES, np.mean(list(chosen(own).values()), axis=0), "--" if name in (RANDOM, TRUTH) else "o-", **style
        )
        if row["ACC, truth"] == "":
            continue
        scatter.plot(float(str(row["ACC, truth"])), float(str(row[f"best of {SIZES[-1]}"])), "o", markersize=9, **style)
        for each in own.values():
            quality = np.mean([values[-1] for values in each.best.values()])
            scatter.plot(np.mean(each.right["truth"][1]), quality, ".", color=style["color"], alpha=0.6)
    curve.set_xscale("log", base=2)
    curve.set(xlabel="n", ylabel="true quality of the answer that the judge likes best")
    scatter.set(xlabel="ACC by truth on annotated pairs", ylabel=f"true quality of the best of {SIZES[-1]}")
    for axes in (curve, scatter):
        axes.grid(alpha=0.3)
    curve.legend(fontsize=7)
    return figure


# ---- what it costs


def write_rates(folder: Path, judges: Sequence[JudgeArm], seed: str, out: Path) -> None:
    """Queries a second of processor time on one thread, the median of a few rounds, for the judges that are there."""
    torch.set_num_threads(1)
    rows = []
    for judge in judges:
        runs = out / f"{judge.folder}-{seed}"
        score, model = made(runs, "score"), next(runs.glob("*/artifacts/reward/model"), None)
        if score is None or model is None:
            print(f"left out, because it did not finish: {judge.name}")
            continue
        index = Index.load(next(runs.glob("*/artifacts/pack")))
        holdout = json.loads((score / "artifact.json").read_text(encoding="utf-8"))["settings"]["holdout"]
        groups = [index.read(int(row)) for row in index.split("heldout", holdout)[:TIMED]]
        kept = {name: value if name == "temperature" else int(value) for name, value in judge.asked.items()}
        asked = RewardModel.from_pretrained(model, critiques=CritiqueSettings(**{"max_tokens": 96, **kept}))  # type: ignore[arg-type]
        seconds = sorted(timed(asked, groups) for _ in range(ROUNDS))
        responses = sum(len(group.responses) for group in groups)
        middle = seconds[len(seconds) // 2]
        row: dict[str, object] = {"judge": judge.name, "responses a second": f"{responses / middle:.1f}"}
        for name, spent in (("", middle), (" low", seconds[-1]), (" high", seconds[0])):
            row[f"queries a second{name}"] = f"{len(groups) / spent:.4f}"
        rows.append(row)
    if not rows:
        sys.exit(f"no judge below {out} has finished")
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "rates.csv", rows)
    write_markdown(folder / "rates.md", rows)


def timed(judge: RewardModel, groups: Sequence) -> float:
    """Seconds of processor time in which a judge scores all responses."""
    start = time.process_time()
    judge.score_groups(groups)
    return time.process_time() - start


if __name__ == "__main__":
    main()
