"""The sections of the report page: from results to the tables and plots that the template lays out.

Every section is a mapping; one whose input is absent holds only `missing`: what to run to fill it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmrlhf.chain.provenance import as_started
from mmrlhf.losses.objective import Objective
from mmrlhf.metrics.policy import Change, change
from mmrlhf.reporting import plots
from mmrlhf.reporting.categories import MOST_SHOWN, common, largest_first
from mmrlhf.reporting.inputs import AnswerPair, PairTable, StageResult, pair_betas, paired_answers
from mmrlhf.reporting.plots import Interval, dot
from mmrlhf.shards.index import Index
from mmrlhf.summaries.datasets import PackSummary
from mmrlhf.summaries.evaluations import BestOf, EvaluateSummary, Measure
from mmrlhf.summaries.rankings import Accuracy, PartAccuracy
from mmrlhf.summaries.scores import RewardsSummary

Section = dict[str, Any]
Answers = Mapping[str, list[dict[str, Any]]]
Evaluated = StageResult[EvaluateSummary]
CURVE_POINTS = 200


def missing(what: str, command: str) -> Section:
    """Stand in for a section whose input is absent; `command` (`python run.py ...`) would fill it."""
    return {"missing": what, "command": as_started(command)}


def data_section(index: Index, pack: StageResult[PackSummary] | None) -> Section:
    """Say what the data are: counts, responses per query, categories, and what packing left out."""
    num_responses, num_pairs = index.column("num_responses"), index.column("num_pairs")
    sizes = Counter(int(number) for number in num_responses)
    categories = Counter(str(name) for name in index.column("category"))
    facts: dict[str, Any] = {
        "queries": len(index),
        "responses": int(num_responses.sum()),
        "ranked pairs": int(num_pairs.sum()),
        "shards": len(index.shards),
        "megabytes": round(sum(shard.bytes for shard in index.shards) / 1e6, 1),
        "digest": index.digest[:16],
    }
    packed = pack.summary if pack is not None else None
    if packed is not None:
        facts |= {
            "ties": packed.ties,
            "images": packed.images,
            "videos": packed.videos,
            "text only groups": packed.text_only_groups,
            "contradictions": packed.contradictions,
            "repeated responses merged": packed.repeated_responses_merged,
            "rejected": packed.rejected,
        }
    return {
        "facts": facts,
        "sizes": plots.bars({f"K = {size}": sizes[size] for size in sorted(sizes)}, label="queries by responses"),
        "categories": plots.bars(
            {name: categories[name] for name in common(categories)},
            label="queries by category" + more(len(categories) - MOST_SHOWN),
            colour=2,
        ),
        "rejections": dict(packed.rejected_by_reason) if packed is not None else {},
        "no_pack_report": packed is None,
    }


def more(number: int) -> str:
    """Say in a label that so many categories are not in the picture."""
    return f" ({number} rarer ones are not shown)" if number > 0 else ""


def both_accuracies(report: PartAccuracy, label: str, **look: Any) -> dict[str, Interval]:
    """ACC over pairs and ACC+ over queries."""
    return {"acc": dot(report.acc, label, **look), "acc_plus": dot(report.acc_plus, label, **look)}


def reward_section(score: StageResult[RewardsSummary] | None, pairs: PairTable | None) -> Section:
    """How well the reward model ranks: against baselines, by annotators and by truth, per category; and its margins."""
    heldout = score.summary.heldout if score is not None and score.summary is not None else None
    if heldout is None and pairs is None:
        return missing("no rewards are known", "python run.py stage=score")
    tables = heldout.accuracy if heldout is not None else {}
    judges = [_judge_table(judge, table) for judge, table in tables.items() if table]
    section: Section = {"judges": judges, "queries": heldout.queries if heldout is not None else None}
    if pairs is not None:
        section["margins"] = plots.histogram(pairs.margins, label="margin r(chosen) - r(rejected)", mark=0.0)
        section["rewards"] = plots.histogram(pairs.rewards, label="reward of a response", colour=2)
        section["margin_facts"] = {
            "queries": pairs.num_groups,
            "pairs": len(pairs.margins),
            "mean margin": float(pairs.margins.mean()),
            "median margin": float(np.median(pairs.margins)),
            "share of negative margins": float((pairs.margins < 0).mean()),
        }
    return section


def _judge_table(judge: str, table: Mapping[str, Accuracy]) -> Section:
    """One judge's side: dots for ACC and ACC+ of every scorer, and the first scorer's categories."""
    rows = []
    for place, (scorer, report) in enumerate(table.items()):
        look = {"group": min(place, 5), "strong": place == 0}
        rows.append({"name": scorer, **both_accuracies(report, scorer, **look)})
    scorer, report = next(iter(table.items()))
    by_category = [
        {"name": name, "pairs": found.num_pairs, **both_accuracies(found, name)}
        for name, found in report.categories.items()
    ]
    by_category = largest_first(by_category, "pairs")
    return {
        "judge": judge,
        "rows": rows,
        "acc": plots.intervals([row["acc"] for row in rows], label=f"ACC by {judge}", mark=0.5),
        "acc_plus": plots.intervals([row["acc_plus"] for row in rows], label=f"ACC+ by {judge}"),
        "scorer": scorer,
        "categories": by_category,
    }


def beta_section(pairs: PairTable | None, objective: Objective | None) -> Section:
    """What the margins do to beta: the objective's curve with the data's pairs, and how the betas are spread."""
    if pairs is None or pairs.betas is None or objective is None:
        return missing("the rewards or the objective are not known", "python run.py stage=score")
    low, high = np.quantile(pairs.margins, (0.005, 0.995))
    grid = np.linspace(low, high, CURVE_POINTS)
    # Where beta depends on the other pairs of a call there is no such curve, only the pairs' own values.
    curve = None if objective.uses_call_statistics else (grid, pair_betas(grid, objective))
    settings = {name: value for name, value in vars(objective).items() if not name.startswith("_")}
    facts = {"mean beta": pairs.betas.mean(), "smallest": pairs.betas.min(), "largest": pairs.betas.max()}
    facts["share at the smallest"] = float(np.isclose(pairs.betas, pairs.betas.min()).mean())
    return {
        "objective": type(objective).__name__,
        "settings": {name: value for name, value in settings.items() if isinstance(value, int | float | str)},
        "curve": plots.beta_of_margin(pairs.margins, pairs.betas, curve),
        "betas": plots.histogram(pairs.betas, label="beta of a pair", colour=1),
        "facts": {name: float(value) for name, value in facts.items()},
    }


MEASURES = (
    ("quality", "quality", "true quality, 0 to 1"),
    ("reward", "reward", "reward model's score"),
    ("kl", None, "distance from the reference, nats an answer"),
    ("length", "num_tokens", "length, tokens"),
    ("cut_off", None, "share of answers cut off"),
)


def policy_section(
    before: Evaluated | None, after: Evaluated | None, old: Answers, new: Answers, best: BestOf | None
) -> Section:
    """What preference training changed: every measure before and after, the paired differences, by category, drift.

    Args:
        best: `best_of_before` of the old answers.
    """
    if after is None and before is None:
        return missing("no policy has been evaluated", "python run.py stage=evaluate")
    rows = []
    for name, column, description in MEASURES:
        row: Section = {"name": description, "before": _mean(before, name), "after": _mean(after, name)}
        if row["before"] is None and row["after"] is None:
            continue
        gain = difference(paired_answers(old, new, column)) if column is not None else None
        if gain is not None:
            row |= {"difference": dot(gain.mean), "better": gain.better, "worse": gain.worse}
        chosen = {"quality": best.quality, "reward": best.reward}.get(name) if best is not None else None
        rows.append(row | ({"best": dot(chosen)} if chosen is not None else {}))
    section: Section = {
        "best": best,
        "rows": rows,
        "only": None if before and after else ("after" if after else "before"),
    }
    section |= _by_category(before, after, old, new)
    section["ranking"] = _implicit_ranking(after)
    if old and new and paired_answers(old, new, "reward"):
        gains = np.array([b - a for _, _, a, b in paired_answers(old, new, "reward")])
        section["gains"] = plots.histogram(
            gains, label="reward of a query's answers, after minus before", mark=0.0, colour=2
        )
    return section


def difference(rows: Sequence[AnswerPair]) -> Change | None:
    """Mean of after minus before, over matched queries, with a 95% interval."""
    if not rows:
        return None
    keys, _, before, after = zip(*rows, strict=True)
    return change(before, after, keys)


def _measure(stage: Evaluated | None, name: str) -> Measure | None:
    return stage.summary.measures()[name] if stage is not None and stage.summary is not None else None


def _mean(stage: Evaluated | None, name: str, category: str | None = None) -> Interval | None:
    found = _measure(stage, name)
    part = found.categories.get(category) if found is not None and category is not None else found
    return dot(part, category or name) if part is not None else None


def _by_category(before: Evaluated | None, after: Evaluated | None, old: Answers, new: Answers) -> Section:
    """The main measure (quality, else reward) by category, and its picture against the drift."""
    measure = next((name for name in ("quality", "reward") if _mean(after, name) and _mean(before, name)), None)
    overall = _measure(after, measure) if measure is not None else None
    if measure is None or overall is None:
        return {"categories": [], "measure": None}
    pairs = paired_answers(old, new, measure)
    sizes = {name: found.queries for name, found in overall.categories.items()}
    shown = set(common(sizes))
    own: dict[str, list[AnswerPair]] = {}
    for pair in pairs:
        own.setdefault(pair[1], []).append(pair)
    table, dots = [], []
    all_of_them = difference(pairs)
    if all_of_them is not None:
        dots.append(dot(all_of_them.mean, "all", group=1, strong=True))
    for name in sorted(sizes):
        gain = difference(own.get(name, ()))
        row = {
            "name": name,
            "queries": sizes[name],
            "before": _mean(before, measure, name),
            "after": _mean(after, measure, name),
        }
        table.append(
            {**row, "difference": dot(gain.mean) if gain is not None else None, "kl": _mean(after, "kl", name)}
        )
        if gain is not None and name in shown:
            dots.append(dot(gain.mean, name))
    section: Section = {"measure": measure, "categories": largest_first(table, "queries")}
    if dots:
        section["gain_plot"] = plots.intervals(
            dots, label=f"{measure}, after minus before" + more(len(sizes) - len(shown)), mark=0.0
        )
    arrows = [("all", _mean(before, measure), _mean(after, measure), _mean(after, "kl"))]
    arrows += [(row["name"], row["before"], row["after"], row["kl"]) for row in table if row["name"] in shown]
    known = [(name, kl.value, a.value, b.value) for name, a, b, kl in arrows if a and b and kl]
    if known:
        section["drift"] = plots.drift(known, x_label="distance from the reference, nats an answer", y_label=measure)
    return section


def _implicit_ranking(after: Evaluated | None) -> list[Section]:
    """How well the trained policy's implicit reward ranks the annotated responses."""
    tables = after.summary.preference if after is not None and after.summary is not None else {}
    return [
        {"judge": judge, "name": scorer, **both_accuracies(report, scorer)}
        for judge, table in tables.items()
        for scorer, report in table.items()
    ]
