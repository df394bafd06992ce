"""The pictures of the report page: matplotlib figures as inline SVG that follows the page's light or dark colours.

Figures are drawn in stand-in colours, which are then replaced by the page's CSS variables; text stays text. So the
page needs no other file, its plots can be searched and copied, and they are sharp at any size.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from mmrlhf.metrics import intervals as metrics
from mmrlhf.summaries.rankings import Estimate
from mmrlhf.text import one_line

INK, MUTED, GRID = "#010101", "#020202", "#030303"
SERIES = ("#0a0a01", "#0a0a02", "#0a0a03", "#0a0a04", "#0a0a05", "#0a0a06")
_CSS = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"} | {
    colour: f"var(--c{number})" for number, colour in enumerate(SERIES, start=1)
}
MAX_POINTS = 300
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a dollar sign in a category is one
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
}


@dataclass(frozen=True)
class Interval:
    """A number with its 95% interval, if it has one, as a row of a dot plot.

    group picks the colour, strong makes the dot larger.
    """

    label: str
    value: float
    low: float | None
    high: float | None
    group: int = 0
    strong: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        """Where the line through the dot begins and ends: at the dot itself where there is no interval."""
        return self.value if self.low is None else self.low, self.value if self.high is None else self.high


def dot(found: Estimate | metrics.Interval, label: str = "", **look: Any) -> Interval:
    """A number of a summary, or just measured, as a row of a dot plot; without ends where it has no interval."""
    return Interval(label, found.mean, found.low, found.high, **look)


P = ParamSpec("P")
R = TypeVar("R")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a drawing function under this page's matplotlib settings, and leave the process's own as they are."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def to_svg(figure: Figure, description: str) -> Markup:
    """Turn a figure into an inline SVG element in the page's colours; the description is what a screen reader says."""
    buffer, description = io.StringIO(), one_line(description)
    for text in figure.findobj(Text):
        text.set_text("\n".join(map(one_line, text.get_text().split("\n"))))
    # The salt keeps the ids of clip paths and markers apart between the plots of one page.
    with mpl.rc_context({"svg.hashsalt": description}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's browser has its own fonts
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    width = re.search(r'width="([\d.]+)pt"', svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    for colour, variable in _CSS.items():
        svg = svg.replace(colour, variable)
    points = float(width[1]) if width else 400.0
    label = f'<svg class="plot" role="img" aria-label="{escape(description)}" style="max-width:{points * 1.34:.0f}px"'
    return Markup(svg.replace("<svg", label, 1))  # noqa: S704 - matplotlib escapes the text it writes


@styled
def histogram(values: np.ndarray, *, label: str, mark: float | None = None, colour: int = 0) -> Markup:
    """Draw how values (n,) are spread, with a line at `mark`; the outermost 0.5% on each side go into the end bins."""
    figure, axes = new_axes(4.6, 2.5)
    values = np.asarray(values, dtype=np.float64)
    values = values[np.isfinite(values)]
    if len(values):
        low, high = _range(values)
        bins = min(40, max(8, len(values) // 8))
        axes.hist(values.clip(low, high), bins=bins, range=(low, high), color=SERIES[colour], alpha=0.85)
    if mark is not None:
        axes.axvline(mark, color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_xlabel(label)
    axes.set_ylabel("count")
    axes.grid(visible=False, axis="x")
    return to_svg(figure, f"histogram of {label}, {len(values)} values")


@styled
def bars(counts: Mapping[str, float], *, label: str, colour: int = 0, format_value: str = "{:,.0f}") -> Markup:
    """Draw one horizontal bar per name, with its number."""
    figure, axes = new_axes(4.6, 0.6 + 0.3 * max(len(counts), 1))
    names, values = list(counts), np.array([float(value) for value in counts.values()])
    places = np.arange(len(names))[::-1]
    axes.barh(places, values, height=0.62, color=SERIES[colour], alpha=0.85)
    axes.set_yticks(places, [short_name(name) for name in names])
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            format_value.format(value), (value, place), (4, 0), textcoords="offset points", va="center",
            color=INK, fontsize=8.5,
        )  # fmt: skip
    axes.margins(x=0.18)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    return to_svg(figure, f"{label}: " + ", ".join(f"{name} {value:g}" for name, value in counts.items()))


@styled
def intervals(rows: Sequence[Interval], *, label: str, mark: float | None = None) -> Markup:
    """Draw numbers as dots with their 95% intervals, the first row on top."""
    figure, axes = new_axes(5.2, 0.7 + 0.3 * max(len(rows), 1))
    for place, row in enumerate(reversed(rows)):
        colour = SERIES[row.group % len(SERIES)]
        axes.plot(list(row.ends), [place, place], color=colour, linewidth=3 if row.strong else 2, alpha=0.45)
        axes.plot([row.value], [place], "o", color=colour, markersize=8 if row.strong else 5.5)
    axes.set_yticks(range(len(rows)), [short_name(row.label) for row in reversed(rows)])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    if mark is not None:
        axes.axvline(mark, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.margins(y=0.5 / max(len(rows), 1))
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    described = ", ".join(f"{row.label} {row.value:.3f} ({row.ends[0]:.3f} to {row.ends[1]:.3f})" for row in rows)
    return to_svg(figure, f"{label}: {described}")


@styled
def training_curves(series: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str, legend: bool = True) -> Markup:
    """Draw one panel of curves, name -> (steps, values): long ones smoothed, with the raw values behind them."""
    figure, axes = new_axes(3.5, 2.15)
    for number, (name, (steps, values)) in enumerate(series.items()):
        colour, validation = SERIES[number % len(SERIES)], name.startswith("val")
        known = np.isfinite(values)
        steps, values = steps[known], values[known]
        smooth = values if validation or len(values) < 60 else _smooth(values, len(values) / 40)
        if smooth is not values:
            axes.plot(*_thin(steps, values), color=colour, linewidth=0.8, alpha=0.28)
        marker = "o" if validation or len(values) < 12 else ""
        axes.plot(*_thin(steps, smooth), color=colour, label=name, marker=marker, markersize=4)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4))
    if len(series) > 1 and legend:
        axes.margins(y=0.05 + 0.12 * len(series))  # room for the legend
        axes.legend(loc="upper right")
    return to_svg(figure, f"training curve: {title}")


def _smooth(values: np.ndarray, window: float) -> np.ndarray:
    """Exponential average, corrected for its start."""
    keep = np.exp(-1.0 / max(window, 1.0))
    total = weight = 0.0
    result = np.empty_like(values)
    for i, value in enumerate(values):
        total, weight = keep * total + value, keep * weight + 1.0
        result[i] = total / weight
    return result


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(steps) <= MAX_POINTS:
        return steps, values
    kept = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int))
    return steps[kept], values[kept]


@styled
def beta_of_margin(margins: np.ndarray, betas: np.ndarray, curve: tuple[np.ndarray, np.ndarray] | None) -> Markup:
    """Draw beta over the margin: the objective's curve, the data's pairs on it, and how many lie where."""
    figure, axes = new_axes(5.2, 2.8)
    crowd = axes.twinx()
    crowd.set_axis_off()
    low, high = _range(margins)
    crowd.hist(margins.clip(low, high), bins=48, range=(low, high), color=SERIES[0], alpha=0.18)
    crowd.margins(y=0.15)
    if curve is not None:
        axes.plot(*curve, color=SERIES[1], linewidth=2.2, zorder=3, label="beta(delta)")
    chosen = np.linspace(0, len(margins) - 1, min(len(margins), 250)).astype(int)
    order = np.argsort(margins)[chosen]
    axes.plot(margins[order], betas[order], "o", color=SERIES[0], markersize=5, alpha=0.3, label="pairs of the data")
    axes.axvline(0.0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_xlabel("margin delta = r(chosen) - r(rejected)")
    axes.set_ylabel("beta")
    axes.margins(y=0.12)
    axes.legend(loc="best")
    return to_svg(figure, "beta of every pair over its reward margin")


@styled
def drift(points: Sequence[tuple[str, float, float, float]], *, x_label: str, y_label: str) -> Markup:
    """Draw quality against distance from the reference: (name, distance, before, after) each as an arrow from 0."""
    figure, axes = new_axes(5.2, 3.0)
    for number, (name, distance, before, after) in enumerate(points):
        colour = SERIES[number % len(SERIES)]
        strong = number == 0
        arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 2.4 if strong else 1.3, "shrinkA": 0, "shrinkB": 3}
        axes.annotate("", (distance, after), (0, before), arrowprops=arrow)
        axes.plot([0], [before], "o", color=colour, markersize=5, markerfacecolor="none")
        axes.plot([distance], [after], "o", color=colour, markersize=7 if strong else 5, label=short_name(name))
    axes.margins(0.12)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return to_svg(figure, f"{y_label} against {x_label}, before and after")


def _range(values: np.ndarray) -> tuple[float, float]:
    """Where all but the outermost 0.5% on each side lie, widened where they are all equal."""
    low, high = np.quantile(values, (0.005, 0.995))
    size = max(abs(low), abs(high), 1e-6)
    if high - low <= 1e-6 * size:  # equal up to rounding
        low, high = low - 0.5 * size, high + 0.5 * size
    return float(low), float(high)


def short_name(name: str, length: int = 34) -> str:
    """Cut a name that is too long for an axis."""
    name = one_line(name)
    return name if len(name) <= length else name[: length - 1] + "…"
