"""The sections of the report page on judges: is the reward model sure where it is right, and do annotators agree?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmrlhf.reporting import reward_plots as plots
from mmrlhf.reporting.annotator_agreement import annotation_report, read_annotated
from mmrlhf.reporting.categories import gathered, largest_first
from mmrlhf.reporting.inputs import StageResult
from mmrlhf.reporting.plots import dot, intervals
from mmrlhf.reporting.sample_cards import build_sample, find_group, sample_card
from mmrlhf.reporting.sections import Section, missing
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar
from mmrlhf.summaries.rankings import Calibration, Surprise, Verdicts
from mmrlhf.summaries.scores import RewardsSummary

MOST_CONFUSIONS = 6


def judge_section(score: StageResult[RewardsSummary] | None, index: Index | None, rewards: SideCar | None) -> Section:
    """Calibration, margins, confusions and length on held-out queries, and the pairs that are wrong by most."""
    report = score.summary.heldout.judge if score is not None and score.summary is not None else None
    if report is None:
        return missing("no held-out pairs have been scored", "python run.py stage=score")
    calibration, length = report.calibration, report.length
    tables = sorted(report.ranks.items(), key=lambda item: (item[0] != "all", -sum(map(sum, item[1])), item[0]))
    return {
        "facts": {
            **calibration_facts(calibration),
            "score against length": length.correlation,
            "within queries": length.correlation_within_queries,
        },
        "reliability": plots.reliability(calibration.bins, calibration.bins_at_temperature, calibration.temperature),
        "accuracy": plots.accuracy_of_margin(report.by_margin, calibration.temperature),
        "margins": plots.margins_by_category(report.margins.edges, gathered(report.margins.counts)),
        "length": plots.score_of_length(length.points),
        "verdicts": verdict_rows(report.verdicts),
        "confusions": [plots.rank_confusion(counts, title=name) for name, counts in tables[:MOST_CONFUSIONS]],
        "surprises": surprise_cards(report.surprises, index, rewards),
    }


def calibration_facts(found: Calibration) -> Section:
    """The numbers on calibration, with their intervals."""
    return {
        "pairs": found.num_pairs,
        "calibration error": dot(found.ece),
        "of it, chance": found.ece_of_chance,
        "at its temperature": dot(found.ece_at_temperature),
        "temperature": found.temperature,
        "log loss, nats": dot(found.nll),
        "Brier score": dot(found.brier),
    }


def verdict_rows(verdicts: Mapping[str, Verdicts]) -> Sequence[Mapping[str, Any]]:
    """Right, tied and wrong pairs by category, as rows of a table."""
    rows = [
        {"name": name, **found.to_json(), "pairs": found.right + found.tied + found.wrong}
        for name, found in verdicts.items()
    ]
    return largest_first(rows, "pairs")


def surprise_cards(
    surprises: Sequence[Surprise], index: Index | None, rewards: SideCar | None
) -> list[Mapping[str, Any]]:
    """A card with picture and responses for each pair that is wrong by a large margin."""
    groups = [group for pair in surprises if (group := find_group(index, pair.key)) is not None]
    return [sample_card(build_sample(group, rewards=rewards, objective=None, before=(), after=())) for group in groups]


def annotation_section(index: Index, *, limit: int, seed: int) -> Section:
    """How well several annotators agree, per dimension; empty where the data do not say who gave what."""
    report = annotation_report(read_annotated(index, limit=limit, seed=seed))
    if report is None:
        return {}
    rows, dots = [], []
    for name, found in report.dimensions.items():
        humans = found.humans
        alpha = dot(humans.alpha, name, strong=True) if humans is not None and humans.alpha is not None else None
        kappa = dot(humans.kappa, name) if humans is not None and humans.kappa is not None else None
        row: Section = {"name": name, "alpha": alpha, "kappa": kappa}
        row["models"] = dot(found.models, name) if found.models is not None else None
        row |= {"raters": humans and humans.num_raters, "items": humans and humans.num_items}
        rows.append(row)
        if alpha is not None:
            dots.append(alpha)
    facts = {"queries": report.num_queries, "without readable levels": report.num_unreadable}
    return {
        "agreement": rows,
        "agreement_facts": facts,
        "agreement_plot": intervals(dots, label="Krippendorff's alpha (ordinal)", mark=0.0) if dots else None,
    }
