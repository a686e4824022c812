"""Forms of chart that several sections use, drawn on one axes each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from pipeline_lib.report.style import LINES, MARKERS, colour, series_colour
from pipeline_lib.report.words import method_name

#: What stands for the decomposition's own result, drawn first and boldest wherever it appears.
OWN_METHODS = ("components", "decomposition", "compalign", "ablated")
#: What only says where the scale lies (chance, or an identity), drawn as a grey tick.
TICK_METHODS = ("chance", "area", "identity")


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
) -> Callable[[Axes], None]:
    """Dots on one line for each row, a colour and a marker for each series.

    Parameters
    ----------
    rows
        Names of the lines, from the top.
    values
        Series to one value for each row; NaN where there is none.
    label
        What the axis shows.
    """

    def draw(axes: Axes) -> None:
        places = np.arange(len(rows))
        names = order_methods(list(values))
        axes.hlines(places, *_span(values, limits), color=colour("line"), linewidth=0.8, zorder=0)
        for order, name in reversed(list(enumerate(names))):
            tick = name in TICK_METHODS
            axes.plot(
                values[name],
                places,
                linestyle="none",
                marker="|" if tick else MARKERS[order % len(MARKERS)],
                markersize=11 if tick else (8 if order == 0 else 6),
                markeredgewidth=1.6 if tick else 0,
                color=colour("faint") if tick else series_colour(order),
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
            legend_above(axes, 2, [method_name(name) for name in names])

    return draw


def legend_above(axes: Axes, columns: int = 3, order: Sequence[str] | None = None) -> None:
    """Legend in a line above the axes, where it cannot cover data; `order` names its entries."""
    handles, found = axes.get_legend_handles_labels()
    labels = [str(label) for label in found]
    places = [labels.index(name) for name in (labels if order is None else order)]
    axes.legend(
        [handles[i] for i in places],
        [labels[i] for i in places],
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=min(len(places), columns),
        handlelength=1.6,
        handletextpad=0.4,
        columnspacing=1.2,
        borderaxespad=0,
        borderpad=0.2,
    )


def _span(
    values: Mapping[str, Sequence[float]], limits: tuple[float | None, float | None]
) -> tuple[float, float]:
    flat = np.concatenate([np.asarray(series, dtype=float) for series in values.values()])
    flat = flat[np.isfinite(flat)]
    low, high = (float(flat.min()), float(flat.max())) if len(flat) else (0.0, 1.0)
    return (low if limits[0] is None else limits[0], high if limits[1] is None else limits[1])


def _limit(axes: Axes, limits: tuple[float | None, float | None]) -> None:
    low, high = limits
    if low is not None:
        axes.set_xlim(left=low - (0.0 if high is None else 0.02 * (high - low)))
    if high is not None:
        axes.set_xlim(right=high + 0.02 * (high - (low or 0.0)))


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
                        fontsize=8,
                        color=colour("ink") if name == rest else colour("surface"),
                    )
            left += width
        axes.set_yticks(places, list(counts.index))
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        legend_above(axes, columns=4)

    return draw
