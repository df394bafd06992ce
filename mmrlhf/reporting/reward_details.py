"""What else there is to know of a scorer than its accuracy: calibration, margins, confusions, length, surprises."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from mmrlhf.metrics.calibration import accuracy_by_margin, calibration_report, rank_correlation
from mmrlhf.summaries.rankings import (
    Calibration,
    JudgeReport,
    MarginBin,
    MarginHistograms,
    ScoreAndLength,
    Surprise,
    Verdicts,
)
from mmrlhf.types import PreferenceGroup

MARGIN_BINS = 32
LENGTH_POINTS = 400
NUM_SURPRISES = 6


def judge_report(
    groups: Sequence[PreferenceGroup], scores: Sequence[Sequence[float]], *, seed: int = 0
) -> JudgeReport | None:
    """Report on scores of every response against the annotators' pairs; None without a pair.

    Args:
        groups: ranked queries (media are not looked at).
        scores: one number per response of each.
        seed: of the halves that get each other's temperature, and of the points shown.

    Returns: `calibration` (see `calibration_report`), `by_margin` (`accuracy_by_margin`), `margins` (histograms by
        category), `verdicts` (right, tied and wrong pairs by category), `ranks` (annotators' rank against the scorer's,
        by category), `length` (characters against score), `surprises` (pairs that are wrong by the largest margin).
    """
    rows = [
        (group.key, group.category, chosen, rejected, own[chosen] - own[rejected])
        for group, own in zip(groups, scores, strict=True)
        for chosen, rejected in group.ranked_pairs()
    ]
    if not rows:
        return None
    keys, categories, _, _, gaps = (list(column) for column in zip(*rows, strict=True))
    margins = np.array(gaps)
    return JudgeReport(
        calibration=Calibration.from_json(calibration_report(margins, keys, seed=seed), where="calibration_report"),
        by_margin=margin_bins(margins, keys),
        margins=margin_histograms(margins, categories),
        verdicts=verdicts(margins, categories),
        ranks=_rank_confusion(groups, scores),
        length=_length(groups, scores, seed),
        surprises=_surprises(rows),
    )


def margin_bins(margins: np.ndarray, keys: Sequence[str]) -> list[MarginBin]:
    """How often pairs (P,) are right by the size of their margin; keys (P,) name their queries."""
    return [MarginBin.from_json(found, where="accuracy_by_margin") for found in accuracy_by_margin(margins, keys)]


def margin_histograms(margins: np.ndarray, categories: Sequence[str]) -> MarginHistograms:
    """Counts by category over common bins; the outermost 0.5% on each side go into the end bins."""
    low, high = (float(value) for value in np.quantile(margins, (0.005, 0.995)))
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, MARGIN_BINS + 1)
    names = np.array(categories)
    counts = {
        name: np.histogram(margins[names == name].clip(low, high), edges)[0].tolist()
        for name in sorted(set(categories))
    }
    return MarginHistograms(edges.tolist(), counts)


def verdicts(margins: np.ndarray, categories: Sequence[str]) -> dict[str, Verdicts]:
    """Right, tied and wrong pairs (P,) by category."""
    names = np.array(categories)
    found: dict[str, Verdicts] = {}
    for name in sorted(set(categories)):
        own = margins[names == name]
        found[name] = Verdicts(
            right=int((own > 0).sum()),
            tied=int((own == 0).sum()),
            wrong=int((own < 0).sum()),
            mean_margin=float(own.mean()),
        )
    return found


def _rank_confusion(groups: Sequence[PreferenceGroup], scores: Sequence[Sequence[float]]) -> dict[str, list[list[int]]]:
    """Counts [annotators' rank - 1][scorer's rank - 1] under `all` and every category; equal scores share a rank."""
    most = max(len(group.responses) for group in groups)
    found: dict[str, np.ndarray] = {}
    for group, own in zip(groups, scores, strict=True):
        given = [response.rank for response in group.responses]
        if any(rank is None for rank in given):
            continue
        places = rankdata(np.negative(np.asarray(own, dtype=float)), method="dense").astype(int) - 1
        for name in ("all", group.category):
            table = found.setdefault(name, np.zeros((most, most), dtype=int))
            for rank, place in zip(given, places, strict=True):
                # a rank above K can only come from data that were ranked among more responses than are left
                table[min(int(rank or 1), most) - 1, place] += 1
    return {name: table.tolist() for name, table in found.items()}


def _length(groups: Sequence[PreferenceGroup], scores: Sequence[Sequence[float]], seed: int) -> ScoreAndLength:
    flat = [
        (group.key, len(response.text), float(score))
        for group, own in zip(groups, scores, strict=True)
        for response, score in zip(group.responses, own, strict=True)
    ]
    keys, lengths, values = (list(column) for column in zip(*flat, strict=True))
    chosen = np.sort(np.random.default_rng(seed).permutation(len(flat))[:LENGTH_POINTS])
    return ScoreAndLength(
        correlation=_known(rank_correlation(lengths, values)),
        correlation_within_queries=_known(rank_correlation(lengths, values, keys)),
        points=[(lengths[i], round(values[i], 4)) for i in chosen],
    )


def _surprises(rows: Sequence[tuple[str, str, int, int, float]]) -> list[Surprise]:
    """The wrong pairs with the largest margins, the worst of each query."""
    found: dict[str, Surprise] = {}
    for key, category, chosen, rejected, gap in sorted(rows, key=lambda row: row[-1]):
        if gap >= 0 or len(found) == NUM_SURPRISES:
            break
        found.setdefault(key, Surprise(key, category, chosen, rejected, float(gap)))
    return list(found.values())


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
