"""Best of n in numbers, as a table, a picture and a page: reward and truth against the distance that n stands for."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup
from rich.table import Table

from mmrlhf.metrics.best_of import choice_probabilities, kl_bound, sizes_up_to
from mmrlhf.metrics.intervals import Interval, mean_interval, paired_difference
from mmrlhf.reporting.page_style import environment, style
from mmrlhf.reporting.plots import SERIES, new_axes, styled, to_svg
from mmrlhf.summaries.evaluations import BestOf, BestOfNSummary
from mmrlhf.summaries.rankings import Estimate
from mmrlhf.terminal.words import add_row, new_table

COLUMNS = ("split", "n", "kl_bound", "queries", "reward", "reward_gain", "quality", "quality_gain")


@dataclass(frozen=True)
class Judged:
    """One query's different answers (K): the judge's rewards, how often each was drawn, and true qualities if known."""

    key: str
    rewards: Sequence[float]
    drawn: Sequence[int]
    quality: Sequence[float] | None

    def best_of(self, n: int) -> tuple[float, float | None]:
        """Expected reward, and expected quality, of the best of n of its answers."""
        chosen = choice_probabilities(self.rewards, self.drawn, n)
        quality = None if self.quality is None else float(chosen @ np.array(self.quality))
        return float(chosen @ np.array(self.rewards)), quality


def best_of_rows(queries: Sequence[Judged]) -> list[BestOf]:
    """The curve over n; for every n the queries that have so many answers, each paired with its own n = 1."""
    most = most_drawn(queries)
    return [best_of(queries, n) for n in sizes_up_to(most)] if most else []


def most_drawn(queries: Sequence[Judged]) -> int:
    """The largest n: how many answers a query has at most; 0 without queries."""
    return max((sum(query.drawn) for query in queries), default=0)


def best_of(queries: Sequence[Judged], n: int) -> BestOf:
    """One point of that curve; there must be a query with n answers."""
    asked = [query for query in queries if sum(query.drawn) >= n]
    best, one = [query.best_of(n) for query in asked], [query.best_of(1) for query in asked]
    reward, quality = zip(*best, strict=True)
    plain_reward, plain_quality = zip(*one, strict=True)
    known = None not in quality
    return BestOf(
        n=n,
        kl_bound=kl_bound(n),
        queries=len(asked),
        reward=_estimate(mean_interval(reward)),
        reward_gain=_estimate(paired_difference(reward, plain_reward)),
        quality=_estimate(mean_interval(quality)) if known else None,
        quality_gain=_estimate(paired_difference(quality, plain_quality)) if known else None,
    )


def over_optimised(queries: Sequence[Judged], rows: Sequence[BestOf]) -> tuple[int | None, Estimate | None]:
    """The n at which the truth is highest, and by how much it is above the truth at the largest n, query by query."""
    known = [(row.quality.mean, -row.n) for row in rows if row.quality is not None]
    if not known or len(known) < len(rows):
        return None, None
    peak, most = -max(known)[1], rows[-1].n
    asked = [query for query in queries if sum(query.drawn) >= most]
    there = [query.best_of(peak)[1] or 0.0 for query in asked]
    return peak, _estimate(paired_difference(there, [query.best_of(most)[1] or 0.0 for query in asked]))


def _estimate(found: Interval) -> Estimate:
    return Estimate(found.mean, found.low, found.high)


def best_of_table(summary: BestOfNSummary) -> Table:
    """The curve as a table for the terminal: of held-out queries, where there are any."""
    shown = summary.heldout or summary.train
    title = f"best of n, {'held-out' if summary.heldout else 'training'} queries (the page has all)"
    table = new_table("n", "KL at most", "queries", "reward", "gain", "quality", "gain", title=title, fold=True)
    for row in shown:
        add_row(table, row.n, f"{row.kl_bound:.2f}", row.queries, *map(_said, _measures(row)))
    return table


def write_csv(path: Path, summary: BestOfNSummary) -> None:
    """The same as a file, with the ends of all intervals."""
    names = [f"{name}{end}" for name in COLUMNS[4:] for end in ("", "_low", "_high")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS[:4], *names])
        for split, row in _rows(summary):
            ends = [end for found in _measures(row) for end in _ends(found)]
            writer.writerow([split, row.n, row.kl_bound, row.queries, *ends])


def page(summary: BestOfNSummary) -> str:
    """One HTML page: what it comes to, the pictures, the table."""
    rows = [(split, row, *_measures(row)) for split, row in _rows(summary)]
    shown = summary.heldout or summary.train
    pictures = [_curve(shown, name) for name in _known(shown)]
    template = environment().get_template("best_of_n.html.j2")
    return template.render(css=style(), summary=summary, rows=rows, said=_said, pictures=pictures)


def _rows(summary: BestOfNSummary) -> list[tuple[str, BestOf]]:
    return [*(("held out", row) for row in summary.heldout), *(("train", row) for row in summary.train)]


def _measures(row: BestOf) -> tuple[Estimate | None, ...]:
    return row.reward, row.reward_gain, row.quality, row.quality_gain


def _ends(found: Estimate | None) -> tuple[float | None, ...]:
    return (None, None, None) if found is None else (found.mean, found.low, found.high)


def _said(found: Estimate | None) -> str:
    if found is None:
        return "–"
    ends = "" if found.low is None else f" [{found.low:.3f}, {found.high:.3f}]"
    return f"{found.mean:.3f}{ends}"


def _known(rows: Sequence[BestOf]) -> list[str]:
    return ["reward", "quality"] if rows and all(row.quality is not None for row in rows) else ["reward"] * bool(rows)


@styled
def _curve(rows: Sequence[BestOf], name: str) -> Markup:
    """One measure against the distance, with its interval."""
    figure, axes = new_axes(4.6, 2.8)
    distance = [row.kl_bound for row in rows]
    found: list[Estimate] = [getattr(row, name) for row in rows]
    mean = [each.mean for each in found]
    low = [each.mean if each.low is None else each.low for each in found]
    high = [each.mean if each.high is None else each.high for each in found]
    colour = SERIES[0 if name == "reward" else 1]
    axes.fill_between(distance, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(distance, mean, "o-", color=colour, markersize=4)
    for x, y, row in zip(distance, mean, rows, strict=True):
        axes.annotate(str(row.n), (x, y), textcoords="offset points", xytext=(0, 5), ha="center", fontsize=7)
    axes.set_xlabel("distance from the policy at most, log n - (n - 1) / n, in nats; n at the dots")
    axes.set_ylabel({"reward": "reward of the best of n", "quality": "true quality of the best of n"}[name])
    axes.margins(0.08)
    return to_svg(figure, f"{name} of the best of n answers against the distance from the policy")
