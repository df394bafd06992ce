"""A number over two settings, as a map on a sweep's page and as a file of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.patches import Rectangle

from mmrlhf.stages.report_plots import INK, SERIES, new_axes, styled, to_svg

# page.css has the same
PALETTE = ("#2f6fd0", "#d9662c", "#17927a", "#8a5cc2", "#a98411", "#c0477e")
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
    axes.set_xticks(range(len(columns)), list(columns))
    axes.set_yticks(range(len(rows)), list(rows)[::-1])
    axes.set(xlim=(-0.55, len(columns) - 0.45), ylim=(-0.55, len(rows) - 0.45), xlabel=labels[1], ylabel=labels[0])
    axes.set_title(title)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelcolor=INK)
    return to_svg(figure, f"{title} over {labels[0]} and {labels[1]}")


def standalone(svg: Markup) -> str:
    """Give a page's plot the page's light colours, so that it can be a file of its own."""
    return re.sub(r"var\((--\w+)\)", lambda match: _LIGHT[match[1]], str(svg))


def _cell(column: int, place: int, **look: Any) -> Rectangle:
    return Rectangle((column - 0.48, place - 0.47), 0.96, 0.94, **look)
