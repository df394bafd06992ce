"""Pictures of how a reward model judges: reliability, accuracy against margin, margins, ranks, length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from scipy.special import expit

from mmrlhf.reporting.plots import GRID, INK, MUTED, SERIES, dot, new_axes, short_name, styled, to_svg
from mmrlhf.summaries.rankings import CalibrationBin, MarginBin

_DASHED = (0, (4, 3))


@styled
def reliability(before: Sequence[CalibrationBin], after: Sequence[CalibrationBin], temperature: float) -> Markup:
    """Draw how often what a scorer gives probability p comes true, as it is and after its temperature.

    before, after: bins of `calibration_report`; a dot's area grows with its pairs.
    """
    figure, axes = new_axes(4.4, 3.4)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=_DASHED)
    most = max(found.count for found in [*before, *after])
    for bins, colour, name in (
        (before, SERIES[0], "as it is"),
        (after, SERIES[1], f"at temperature {temperature:.3g}"),
    ):
        places = [found.confidence for found in bins], [found.accuracy for found in bins]
        axes.plot(*places, color=colour, linewidth=1.4, alpha=0.7)
        sizes = [12 + 90 * found.count / most for found in bins]
        axes.scatter(*places, s=sizes, color=colour, alpha=0.85, label=name, linewidths=0)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.set_xlabel("probability that the response shown first is better")
    axes.set_ylabel("how often it is")
    legend = axes.legend(loc="upper left")
    for handle in legend.legend_handles:
        handle.set_sizes([36])  # type: ignore[union-attr]
    return to_svg(figure, "reliability in both orders, before and after the temperature")


@styled
def accuracy_of_margin(bins: Sequence[MarginBin], temperature: float) -> Markup:
    """Draw accuracy over the size of the margin with 95% intervals, beside what sigmoid(margin) promises."""
    figure, axes = new_axes(4.4, 3.4)
    margins = np.array([found.margin for found in bins])
    dots = [dot(found.accuracy) for found in bins]
    means = np.array([found.value for found in dots])
    lows, highs = np.array([found.ends for found in dots]).T
    grid = np.linspace(0, margins.max() * 1.05 if margins.max() > 0 else 1.0, 100)
    axes.plot(grid, expit(grid), color=MUTED, linewidth=1.2, linestyle=_DASHED, label="sigmoid(margin)")
    axes.plot(grid, expit(grid / temperature), color=SERIES[1], linewidth=1.2, alpha=0.8, label="at its temperature")
    axes.vlines(margins, lows, highs, color=SERIES[0], linewidth=2.5, alpha=0.4)
    axes.plot(margins, means, "o-", color=SERIES[0], markersize=5.5, label="pairs")
    axes.set_ylim(min(0.45, float(lows.min()) - 0.03), 1.03)
    axes.set_xlabel("size of the margin")
    axes.set_ylabel("share of pairs ranked right")
    axes.legend(loc="lower right")
    return to_svg(figure, "accuracy over the size of the margin")


@styled
def margins_by_category(edges: Sequence[float], counts: Mapping[str, Sequence[int]]) -> Markup:
    """Draw histograms of the margins, categories on top of each other; what is left of 0 contradicts the annotators."""
    figure, axes = new_axes(4.4, 3.0)
    width, bottom = np.diff(edges), np.zeros(len(edges) - 1)
    for number, (name, own) in enumerate(counts.items()):
        axes.bar(
            edges[:-1], own, width, bottom, align="edge", color=SERIES[number % len(SERIES)], alpha=0.85,
            label=short_name(name, 18), linewidth=0,
        )  # fmt: skip
        bottom += np.asarray(own)
    axes.axvline(0.0, color=INK, linewidth=1.2, linestyle=_DASHED)
    axes.set_xlabel("margin r(chosen) - r(rejected)")
    axes.set_ylabel("pairs")
    axes.grid(visible=False, axis="x")
    if len(counts) > 1:
        axes.legend(loc="upper left")
    return to_svg(figure, "margins of held-out pairs by category")


@styled
def rank_confusion(counts: Sequence[Sequence[int]], *, title: str) -> Markup:
    """Draw where a scorer puts the responses of each annotated rank, as shares of the row."""
    table = np.asarray(counts, dtype=float)
    size = int(np.flatnonzero(table.sum(0) + table.sum(1))[-1]) + 1 if table.any() else 1
    table = table[:size, :size]
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    figure, axes = new_axes(1.1 + 0.48 * size, 1.1 + 0.4 * size)
    for (row, column), share in np.ndenumerate(shares):
        place = size - 1 - row
        axes.fill(
            [column - 0.48, column + 0.48, column + 0.48, column - 0.48],
            [place - 0.47, place - 0.47, place + 0.47, place + 0.47],
            color=SERIES[0], alpha=0.04 + 0.7 * share, linewidth=0,
        )  # fmt: skip
        axes.text(column, place, f"{share:.0%}", ha="center", va="center", fontsize=8.5, color=INK)
    axes.set_xticks(range(size), [str(rank + 1) for rank in range(size)])
    axes.set_yticks(range(size), [str(size - rank) for rank in range(size)])
    axes.set(xlim=(-0.55, size - 0.45), ylim=(-0.55, size - 0.45), xlabel="rank by score", ylabel="annotators' rank")
    axes.set_title(short_name(title, 18))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=MUTED)
    return to_svg(figure, f"annotators' rank against rank by score, {title}")


@styled
def score_of_length(points: Sequence[Sequence[float]]) -> Markup:
    """Draw score against length in characters, with the mean of each tenth of the lengths."""
    figure, axes = new_axes(4.4, 3.0)
    lengths, scores = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    axes.plot(lengths, scores, "o", color=SERIES[2], markersize=4, alpha=0.35, markeredgewidth=0)
    known = np.unique(lengths)
    edges = known if len(known) <= 12 else np.unique(np.quantile(lengths, np.linspace(0, 1, 11)))[:-1]
    place = np.searchsorted(edges, lengths, side="right") - 1
    means = [(lengths[place == i].mean(), scores[place == i].mean()) for i in np.unique(place)]
    axes.plot(*zip(*means, strict=True), "o-", color=SERIES[1], markersize=5)
    axes.axhline(float(scores.mean()), color=GRID, linewidth=1)
    axes.set_xlabel("length of the response, characters")
    axes.set_ylabel("score")
    return to_svg(figure, "score of a response against its length")
