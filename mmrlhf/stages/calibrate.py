"""Stage `calibrate`: whether anyone's scores of pairs say how sure they are, as a page and as numbers.

`python run.py stage=calibrate scores=FILE`. No model and no data set: the file holds the scores of pairs, from a reward
model, a judge or a script.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmrlhf.chain.runtime import Runtime
from mmrlhf.files import expanded
from mmrlhf.metrics.calibration import calibration_report
from mmrlhf.metrics.ranking import accuracy_report
from mmrlhf.ranges import Natural
from mmrlhf.records.pair_scores import PairScores, read_pair_scores
from mmrlhf.reporting import reward_plots, sections
from mmrlhf.reporting.categories import CATEGORIES, gathered, write_categories
from mmrlhf.reporting.page_style import environment, style
from mmrlhf.reporting.reward_details import margin_bins, margin_histograms, verdicts
from mmrlhf.reporting.reward_sections import calibration_facts, verdict_rows
from mmrlhf.summaries.rankings import Accuracy, Calibration
from mmrlhf.summaries.scores import CalibrateSummary

PAGE = "report.html"

# another number builds the stage anew, whatever `code` says
VERSION = 2
# what is in a finished artefact; checked before it is published
PROMISES = ("report.html", "categories.csv", "metrics.json")


def run(out: Path, *, scores: Path, seed: Natural = 0, runtime: Runtime) -> dict[str, Any]:
    """Write `out/report.html`, `out/categories.csv` and `out/metrics.json`: reliability with each pair shown in both
    orders, calibration error, log loss and Brier score as they are and at a fitted temperature, with intervals over
    queries.

    Args:
        scores: file with a row for each pair: score_chosen, score_rejected, and optionally group and category.
        seed: of the halves that get each other's temperature.

    Raises:
        DataError: a row without two numbers, named by file and line.
    """
    pairs = read_pair_scores(scores)
    margins = np.array(pairs.chosen) - np.array(pairs.rejected)
    accuracy = accuracy_report(pairs.groups, pairs.chosen, pairs.rejected, pairs.categories)
    summary = CalibrateSummary(
        accuracy=Accuracy.from_json(accuracy, where="accuracy_report"),
        calibration=Calibration.from_json(
            calibration_report(margins, pairs.groups, seed=seed), where="calibration_report"
        ),
        by_margin=margin_bins(margins, pairs.groups),
        margins=margin_histograms(margins, pairs.categories),
        verdicts=verdicts(margins, pairs.categories),
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / PAGE).write_text(_page(pairs, summary, scores.name), encoding="utf-8", errors="backslashreplace")
    write_categories(out / CATEGORIES, {"verdicts": verdict_rows(summary.verdicts)})
    return summary.write(out)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Read the whole file (DataError names a bad row) before anything is built."""
    read_pair_scores(expanded(settings["scores"]))


def _page(pairs: PairScores, summary: CalibrateSummary, name: str) -> str:
    calibration, accuracy = summary.calibration, summary.accuracy
    temperature = calibration.temperature
    return (
        environment()
        .get_template("calibration.html.j2")
        .render(
            css=style(),
            name=name,
            num_queries=accuracy.num_queries,
            num_pairs=len(pairs),
            accuracies=sections.both_accuracies(accuracy, name),
            facts=calibration_facts(calibration),
            reliability=reward_plots.reliability(calibration.bins, calibration.bins_at_temperature, temperature),
            accuracy=reward_plots.accuracy_of_margin(summary.by_margin, temperature),
            margins=reward_plots.margins_by_category(summary.margins.edges, gathered(summary.margins.counts)),
            verdicts=verdict_rows(summary.verdicts),
        )
    )
