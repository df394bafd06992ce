"""Maps: a number over two settings, values over steps; and one number against another."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.patches import Rectangle

from mmrlhf.reporting.plots import INK, SERIES, Interval, new_axes, short_name, styled, to_svg
from mmrlhf.summaries.histogram_file import Histogram

# page.css has the same
PALETTE = ("#2f6fd0", "#d9662c", "#17927a", "#8a5cc2", "#a98411", "#c0477e")
MAX_STEPS, NUM_LEVELS = 160, 48
MARKERS = ("o", "s", "^", "D")
_LIGHT = {"--ink": "#1b2330", "--muted": "#5c6878", "--grid": "#dde2e9"} | {
    f"--c{number}": colour for number, colour in enumerate(PALETTE, start=1)
}


@styled
def heat_map(
    grid: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    labels: tuple[str, str],
    title: str,
    best: tuple[int, int],
    notes: Mapping[tuple[int, int], str] | None = None,
    higher_is_better: bool = True,
) -> Markup:
    """Draw a table of numbers (rows, columns) with the better ones in stronger colour; nan is left empty.

    labels: what rows and columns are; best: the cell to frame; notes: a small second line of a cell, its interval.
    """
    figure, axes = new_axes(1.9 + 1.15 * len(columns), 1.2 + 0.62 * len(rows))
    known = grid[np.isfinite(grid)]
    low, span = (known.min(), max(np.ptp(known), 1e-12)) if len(known) else (0.0, 1.0)
    for (row, column), value in np.ndenumerate(grid):
        place, note = len(rows) - 1 - row, (notes or {}).get((row, column), "")
        if np.isfinite(value):
            share = (value - low) / span
            strength = 0.06 + 0.6 * (share if higher_is_better else 1 - share)
            axes.add_patch(_cell(column, place, color=SERIES[0], alpha=strength))
        shown = f"{value:.4g}" if np.isfinite(value) else "-"
        axes.text(column, place + 0.15 * bool(note), shown, ha="center", va="center", fontsize=10)
        axes.text(column, place - 0.22, note, ha="center", va="center", fontsize=7.5)
    axes.add_patch(_cell(best[1], len(rows) - 1 - best[0], fill=False, edgecolor=SERIES[1], linewidth=2))
    axes.set_xticks(range(len(columns)), list(map(short_name, columns)))
    axes.set_yticks(range(len(rows)), list(map(short_name, rows))[::-1])
    axes.set(xlim=(-0.55, len(columns) - 0.45), ylim=(-0.55, len(rows) - 0.45), xlabel=labels[1], ylabel=labels[0])
    axes.set_title(title)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    return to_svg(figure, f"{title} over {labels[0]} and {labels[1]}")


@styled
def histogram_map(rows: Sequence[Histogram], *, title: str) -> Markup:
    """Draw how values are spread (up) at every step (across), in stronger colour where more of a step's values are."""
    figure, axes = new_axes(3.5, 2.15)
    kept = [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, MAX_STEPS).round().astype(int))]
    low, high = min(row.low for row in kept), max(row.high for row in kept)
    slack = max(0.0, 0.02 * max(abs(low), abs(high)) - (high - low)) / 2  # equal values are a line, not the whole panel
    edges = np.linspace(low - slack, high + slack, NUM_LEVELS + 1)
    shares = np.stack([spread(row, edges) for row in kept], axis=1)
    # one colour that gets stronger, on whatever the page's background is; the root lets rare values be seen
    colours = ListedColormap([(*to_rgb(PALETTE[0]), level) for level in np.linspace(0, 0.95, 128)])
    axes.pcolormesh(borders([row.step for row in kept]), edges, np.sqrt(shares), cmap=colours, vmin=0, rasterized=True)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.grid(visible=False)
    return to_svg(figure, f"histogram over steps: {title}")


def borders(steps: Sequence[int]) -> np.ndarray:
    """Where the columns of steps (n,) begin and end (n + 1,): half-way between neighbours."""
    places = np.array(steps, dtype=np.float64)
    if len(places) == 1:
        return places[0] + np.array([-0.5, 0.5])
    halves = np.diff(places) / 2
    return np.concatenate(([places[0] - halves[0]], places[:-1] + halves, [places[-1] + halves[-1]]))


def spread(row: Histogram, edges: np.ndarray) -> np.ndarray:
    """The share of a histogram's values in each of other bins (n,) with edges (n + 1,), even inside its own bins."""
    own = np.linspace(row.low, row.high, len(row.counts) + 1)
    below = np.concatenate(([0.0], np.cumsum(row.counts)))
    return np.diff(np.interp(edges, own, below)) / max(below[-1], 1.0)


@styled
def tradeoff(points: Sequence[tuple[str, Interval, Interval]], *, x_label: str, y_label: str) -> Markup:
    """Draw one number against another, each (name, x, y) as a dot with the intervals of both."""
    figure, axes = new_axes(5.2, 3.4)
    for number, (name, x, y) in enumerate(points):
        axes.errorbar(
            x.value, y.value, label=name, color=SERIES[number % len(SERIES)],
            marker=MARKERS[number // len(SERIES) % len(MARKERS)], markersize=6, elinewidth=1, linestyle="none",
            xerr=[[max(x.value - x.ends[0], 0.0)], [max(x.ends[1] - x.value, 0.0)]],
            yerr=[[max(y.value - y.ends[0], 0.0)], [max(y.ends[1] - y.value, 0.0)]],
        )  # fmt: skip
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return to_svg(figure, f"{y_label} against {x_label}")


def standalone(svg: Markup) -> str:
    """Give a page's plot the page's light colours, so that it can be a file of its own."""
    return re.sub(r"var\((--\w+)\)", lambda match: _LIGHT[match[1]], str(svg))


def _cell(column: int, place: int, **look: Any) -> Rectangle:
    return Rectangle((column - 0.48, place - 0.47), 0.96, 0.94, **look)
