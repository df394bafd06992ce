"""The sections of the report page on judges: is the reward model sure where it is right, and do annotators agree?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmrlhf.reporting import reward_plots as plots
from mmrlhf.reporting.annotator_agreement import annotation_report, read_annotated
from mmrlhf.reporting.categories import gathered, largest_first
from mmrlhf.reporting.inputs import StageResult
from mmrlhf.reporting.plots import dot, intervals
from mmrlhf.reporting.sample_cards import build_sample, sample_card
from mmrlhf.reporting.sections import Section, missing
from mmrlhf.shards.index import Index
from mmrlhf.shards.sidecar import SideCar

MOST_CONFUSIONS = 6


def judge_section(score: StageResult | None, index: Index | None, rewards: SideCar | None) -> Section:
    """Calibration, margins, confusions and length on held-out queries, and the pairs that are wrong by most."""
    report = (score.summary.get("heldout") or {}).get("judge") if score is not None else None
    if not report:
        return missing("no held-out pairs have been scored", "python run.py stage=score")
    calibration = report["calibration"]
    temperature = calibration["temperature"]
    length = report["length"]
    verdicts = [
        {"name": name, **found, "pairs": found["right"] + found["tied"] + found["wrong"]}
        for name, found in report["verdicts"].items()
    ]
    tables = sorted(report["ranks"].items(), key=lambda item: (item[0] != "all", -sum(map(sum, item[1])), item[0]))[
        :MOST_CONFUSIONS
    ]
    return {
        "facts": {
            "pairs": calibration["num_pairs"],
            "calibration error": dot(calibration["ece"]),
            "of it, chance": calibration["ece_of_chance"],
            "at its temperature": dot(calibration["ece_at_temperature"]),
            "temperature": temperature,
            "log loss, nats": dot(calibration["nll"]),
            "Brier score": dot(calibration["brier"]),
            "score against length": length["correlation"],
            "within queries": length["correlation_within_queries"],
        },
        "reliability": plots.reliability(calibration["bins"], calibration["bins_at_temperature"], temperature),
        "accuracy": plots.accuracy_of_margin(report["by_margin"], temperature),
        "margins": plots.margins_by_category(report["margins"]["edges"], gathered(report["margins"]["counts"])),
        "length": plots.score_of_length(length["points"]),
        "verdicts": largest_first(verdicts, "pairs"),
        "confusions": [plots.rank_confusion(counts, title=name) for name, counts in tables],
        "surprises": surprise_cards(report["surprises"], index, rewards),
    }


def surprise_cards(
    surprises: list[Mapping[str, Any]], index: Index | None, rewards: SideCar | None
) -> list[Mapping[str, Any]]:
    """A card with picture and responses for each pair that is wrong by a large margin."""
    if index is None:
        return []
    row_of = {key: row for row, key in enumerate(index.column("key"))}
    cards = []
    for pair in surprises:
        if pair["key"] in row_of:
            group = index.read(row_of[pair["key"]])
            cards.append(sample_card(build_sample(group, rewards=rewards, objective=None, before=(), after=())))
    return cards


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
