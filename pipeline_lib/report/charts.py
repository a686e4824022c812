"""Forms of chart that several sections use, drawn on one axes each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import blended_transform_factory

from pipeline_lib.report.style import LINES, MARKERS, colour, series_colour
from pipeline_lib.report.words import method_name

#: What stands for the decomposition's own result, drawn first and boldest wherever it appears.
OWN_METHODS = ("components", "decomposition", "compalign", "ablated")
#: Names beside a matrix, at most.
_MOST_GROUPS = 14
#: What only says where the scale lies (chance, or an identity), drawn as a grey tick.
TICK_METHODS = ("chance", "area", "identity", "uniform")


def as_percent(axes: Axes, axis: str = "x") -> None:
    """Label an axis of shares in per cent."""
    chosen = axes.xaxis if axis == "x" else axes.yaxis
    chosen.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f}\u202f%"))
    chosen.set_major_locator(MaxNLocator(5, steps=[1, 2.5, 5, 10]))


def order_methods(methods: Sequence[str]) -> list[str]:
    """The decomposition's own method first, ticks last, the others as they come."""
    present = list(dict.fromkeys(methods))
    own = [name for name in present if name in OWN_METHODS]
    ticks = [name for name in present if name in TICK_METHODS]
    return own + [name for name in present if name not in (*own, *ticks)] + ticks


def dot_rows(
    rows: Sequence[str],
    values: Mapping[str, Sequence[float]],
    label: str,
    share: bool = True,
    legend: bool = True,
    limits: tuple[float | None, float | None] = (0.0, None),
    ranges: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Callable[[Axes], None]:
    """Dots on one line for each row, a colour and a marker for each series.

    Parameters
    ----------
    rows
        Names of the lines, from the top.
    values
        Series to one value for each row; NaN where there is none. A series without any value
        is left out, but keeps its colour for the other drawings of the figure.
    label
        What the axis shows.
    ranges
        Series to the lower and the upper ends of its intervals. The series then stand one below
        the other in their row, so that the intervals can be read.
    """

    def draw(axes: Axes) -> None:
        places = np.arange(len(rows))
        slots = {name: place for place, name in enumerate(order_methods(list(values)))}
        names = [name for name in slots if np.isfinite(np.asarray(values[name], float)).any()]
        dots = [name for name in names if name not in TICK_METHODS]
        step = 0.72 / max(1, len(dots)) if ranges else 0.0
        for place in places[:-1] + 0.5 if ranges else places:
            axes.axhline(float(place), color=colour("line"), linewidth=0.8, zorder=0)
        for order, name in reversed(list(enumerate(names))):
            tick = name in TICK_METHODS
            tone = colour("faint") if tick else series_colour(slots[name])
            height = places + (0.0 if tick else step * (order - (len(dots) - 1) / 2))
            if ranges and not tick and name in ranges:
                low, high = ranges[name]
                axes.hlines(height, low, high, color=tone, linewidth=1.3)
            size = 24 if ranges else 11
            axes.plot(
                values[name],
                height,
                linestyle="none",
                marker="|" if tick else MARKERS[slots[name] % len(MARKERS)],
                markersize=size if tick else (7 if slots[name] == 0 else 5.5),
                markeredgewidth=1.6 if tick else 0,
                color=tone,
                label=method_name(name),
            )
        axes.set_yticks(places, rows)
        axes.invert_yaxis()
        axes.margins(y=0.5 / max(len(rows), 1))
        axes.set_xlabel(label)
        axes.spines["left"].set_visible(False)
        _limit(axes, limits)
        if share:
            as_percent(axes)
        if legend:
            legend_above(axes, 3, [method_name(name) for name in names])

    return draw


def method_rows(
    table: pd.DataFrame, models: Sequence[str], value: str, label: str, methods: Sequence[str]
) -> Callable[[Axes], None]:
    """Dots with 95 % intervals from a table of columns model, method, `value`, low and high.

    Several rows of one model and method are averaged, their ends too. `methods` are those of the
    whole figure: each has its colour in all drawings.
    """
    means = table.groupby(["model", "method"], sort=False)[[value, "low", "high"]].mean()
    rows = [name for name in models if name in means.index.get_level_values("model")]

    def column(method: str, name: str) -> list[float]:
        return means[name].reindex([(row, method) for row in rows]).tolist()

    return dot_rows(
        rows,
        {method: column(method, value) for method in methods},
        label,
        limits=(0.0, 1.0),
        ranges={method: (column(method, "low"), column(method, "high")) for method in methods},
    )


def legend_above(axes: Axes, columns: int = 3, order: Sequence[str] | None = None) -> None:
    """Legend in lines above the axes, over the width of the panel; `order` names its entries."""
    handles, found = axes.get_legend_handles_labels()
    labels = [str(label) for label in found]
    if not labels:
        return
    places = [labels.index(name) for name in (labels if order is None else order)]
    labels = [labels[place] for place in places]
    points = axes.figure.bbox.width * 72 / axes.figure.dpi
    widths = [TextPath((0, 0), label, size=_LEGEND_SIZE).get_extents().width for label in labels]
    most = min(columns, len(labels))
    columns = next((c for c in range(most, 1, -1) if _legend_width(widths, c) < points), 1)
    above = blended_transform_factory(axes.figure.transFigure, axes.transAxes)
    legend = axes.legend(
        [handles[place] for place in places],
        labels,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        bbox_transform=above,
        ncols=columns,
        handlelength=1.6,
        handletextpad=0.4,
        columnspacing=1.2,
        borderaxespad=0.2,
        borderpad=0.2,
    )
    for handle in legend.legend_handles:
        if isinstance(handle, Line2D):
            handle.set_markersize(min(8.0, handle.get_markersize()))
    # Wider than the axes, it would squeeze them; a title of blank lines keeps its place instead.
    legend.set_in_layout(False)
    rows = -(-len(labels) // columns)
    axes.set_title("\n".join([" "] * rows), fontsize=_LEGEND_SIZE * 1.2, fontweight="normal", pad=3)


#: Points of a legend's letters, and ems of what stands beside those of one entry.
_LEGEND_SIZE, _BESIDE = 8.5, 3.4


def _legend_width(widths: Sequence[float], columns: int) -> float:
    """How many points wide a legend of labels this wide is, which is filled column by column."""
    longest = sum(float(column.max()) for column in np.array_split(widths, columns))
    return longest + _LEGEND_SIZE * _BESIDE * columns


def _limit(axes: Axes, limits: tuple[float | None, float | None]) -> None:
    low, high = limits
    if low is not None:
        axes.set_xlim(left=low - (0.0 if high is None else 0.02 * (high - low)))
    if high is not None:
        axes.set_xlim(right=high + 0.02 * (high - axes.get_xlim()[0]))


def line_set(
    frame: pd.DataFrame, x: str, y: str, series: Sequence[str], names: Sequence[str]
) -> Callable[[Axes], None]:
    """One line for each series of a long table whose column `series[0]` names it."""

    def draw(axes: Axes) -> None:
        for place, name in enumerate(names):
            part = frame[frame[series[0]] == name].sort_values(x)
            axes.plot(
                part[x],
                part[y],
                color=series_colour(place),
                linestyle=LINES[place % len(LINES)],
                label=name,
            )
        axes.grid(axis="y")

    return draw


def stacked_rows(
    counts: pd.DataFrame, label: str, rest: str | None = None
) -> Callable[[Axes], None]:
    """Horizontal bars stacked from the columns of `counts`, one bar for each row of its index."""

    def draw(axes: Axes) -> None:
        places = np.arange(len(counts))
        left = np.zeros(len(counts))
        named = [str(name) for name in counts.columns if name != rest]
        shades = {name: series_colour(place) for place, name in enumerate(named)}
        if rest is not None and rest in counts.columns:
            shades[rest] = colour("line")
        for name, shade in shades.items():
            width = counts[name].to_numpy(dtype=float)
            axes.barh(places, width, left=left, height=0.62, color=shade, label=name)
            for place, value in enumerate(width):
                if value >= max(1.0, 0.05 * counts.sum(axis=1).max()):
                    axes.text(
                        left[place] + value / 2,
                        place,
                        f"{value:.0f}",
                        ha="center",
                        va="center",
                        fontsize=8.5,
                        color=colour("ink") if name == rest else colour("surface"),
                    )
            left += width
        axes.set_yticks(places, list(counts.index))
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        legend_above(axes, columns=8)

    return draw


def matrix(values: np.ndarray, groups: Sequence[str]) -> Callable[[Axes], None]:
    """How alike things are, as a square of colours; lines stand between the groups they are of.

    Parameters
    ----------
    values
        Symmetric, at most 1 `[m, m]`; NaN stays blank.
    groups
        Group of each row, those of a group side by side; their names are thinned where they are
        too many.
    """
    edges = [0, *(i for i in range(1, len(groups)) if groups[i] != groups[i - 1]), len(groups)]
    step = -(-(len(edges) - 1) // _MOST_GROUPS)

    def draw(axes: Axes) -> None:
        image = axes.imshow(values, cmap="cividis", vmin=min(0.0, np.nanmin(values)), vmax=1.0)
        for edge in edges[1:-1]:
            axes.axhline(edge - 0.5, color=colour("surface"), linewidth=1)
            axes.axvline(edge - 0.5, color=colour("surface"), linewidth=1)
        middles = [(a + b - 1) / 2 for a, b in pairwise(edges)][::step]
        names = [groups[edge] for edge in edges[:-1]][::step]
        axes.set_yticks(middles, names)
        axes.set_xticks(middles, names, rotation=90 if len(names) > 6 else 0)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, pad=0.03)
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0)

    return draw
