"""A benchmark of reward models as one page: accuracies with intervals, the table, and whether the order decided."""

from __future__ import annotations

from mmrlhf.reporting.benchmark_table import benchmark_table, official_table
from mmrlhf.reporting.page_style import environment, style
from mmrlhf.reporting.plots import Interval, dot, intervals
from mmrlhf.summaries.rankings import ANNOTATORS
from mmrlhf.summaries.scores import RewardBenchSummary


def page(summary: RewardBenchSummary) -> str:
    """The page; figures of positions where a generative judge was asked in several orders."""
    reports, judges = summary.accuracy[ANNOTATORS], summary.judges or {}
    same = [dot(own.consistent, name) for name, own in judges.items() if own.consistent is not None]
    # how much more often the first place is chosen than by chance, whatever the number of places
    first = [
        Interval(f"{name}, {number} answers", shares[0] * int(number), None, None)
        for name, own in judges.items()
        for number, shares in own.places.items()
    ]
    label = "share of comparisons whose orders agree"
    return (
        environment()
        .get_template("rewardbench.html.j2")
        .render(
            css=style(),
            queries=summary.queries,
            acc=intervals([dot(own.acc, name) for name, own in reports.items()], label="ACC, over pairs"),
            acc_plus=intervals([dot(own.acc_plus, name) for name, own in reports.items()], label="ACC+, over queries"),
            table=benchmark_table(summary),
            official=official_table(summary),
            consistent=intervals(same, label=label, mark=1.0) if same else None,
            places=intervals(first, label="first place chosen, times chance", mark=1.0) if first else None,
        )
    )
