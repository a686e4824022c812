"""Spurious cues: accuracy by group before and after, and what was ablated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from pandas.api.typing import SeriesGroupBy

from pipeline_lib.report.blocks import (
    Block,
    Caption,
    Component,
    Field,
    Figure,
    Listing,
)
from pipeline_lib.report.charts import as_percent
from pipeline_lib.report.collect import Run
from pipeline_lib.report.findings import ablated_count
from pipeline_lib.report.style import Panel, colour, draw_panel
from pipeline_lib.report.words import method_name, percent, plural

_AVERAGES = ("worst", "mean", "test", "train_weighted")


def spurious_blocks(run: Run) -> list[Block]:
    """Groups before and after, and the averages."""
    return [_groups(run), _averages(run)]


def _groups(run: Run) -> Figure:
    table = run["spurious"]
    panels = [_group_panel(table[table["model"] == name], name) for name in run.models_in(table)]
    settings = run.config["applications"]["spurious"]
    draws = table.loc[table["method"] == "random", "draw"].nunique()
    chosen = "chosen" if settings.get("top_k") else "these and their number chosen"
    return Figure(
        "spurious",
        "Accuracy by group before and after",
        Caption(
            "Accuracy of each group for the full model (open) and after ablation (filled); grey: "
            f"range and mean of {plural(draws, 'draw')} of as many random components.",
            f"The {ablated_count(table)} with the largest score for the spurious words less that "
            f"for the core words, {chosen} on the {settings['select_split']} images, replaced by "
            f"their means; reported on the {settings['report_split']} images.",
            f"{plural(_group_size(table), 'image')} in the smallest group",
        ),
        panels,
        table.drop(columns="ablated"),
        run.files["spurious"],
    )


def _group_size(table: pd.DataFrame) -> int:
    groups = table[~table["group"].isin(_AVERAGES)]
    return int(groups["n"].min())


def _group_panel(part: pd.DataFrame, model: str) -> Panel:
    groups = [name for name in dict.fromkeys(part["group"]) if name not in _AVERAGES]
    rows = [*groups, *(name for name in ("worst", "test") if (part["group"] == name).any())]

    def draw(axes: Axes) -> None:
        for place, group in enumerate(rows):
            _draw_group(axes, place, part[part["group"] == group].groupby("method")["accuracy"])
        if len(rows) > len(groups):
            axes.axhline(len(groups) - 0.5, color=colour("line"), linewidth=0.8)
        names = {"worst": "worst group", "test": "all test images"}
        axes.set_yticks(range(len(rows)), [names.get(row, row) for row in rows])
        axes.invert_yaxis()
        axes.margins(y=0.08)
        axes.set_xlim(max(-0.03, np.floor(part["accuracy"].min() * 10) / 10 - 0.05), 1.03)
        as_percent(axes)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)

    return draw_panel(draw, model, 3.0, 1.0 + 0.26 * len(rows))


def _draw_group(axes: Axes, place: int, accuracy: SeriesGroupBy) -> None:
    """Full model as an open dot, ablated as a filled one, random draws as a grey range."""
    value, low, high = accuracy.mean(), accuracy.min(), accuracy.max()
    if "random" in value:
        axes.hlines(place, low["random"], high["random"], color=colour("line"), linewidth=6)
        tick: dict[str, Any] = {"marker": "|", "markersize": 8, "markeredgewidth": 1.4}
        axes.plot(value["random"], place, color=colour("faint"), **tick)
    if "ablated" in value and "full" in value:
        axes.hlines(place, value["full"], value["ablated"], color=colour("c1"), linewidth=1.4)
    if "full" in value:
        edge: dict[str, Any] = {"markeredgecolor": colour("c1"), "markeredgewidth": 1.5}
        axes.plot(value["full"], place, "o", markersize=7, color=colour("surface"), **edge)
    if "ablated" in value:
        axes.plot(value["ablated"], place, "o", markersize=7.5, color=colour("c1"))


def _averages(run: Run) -> Listing:
    table = run["spurious"]
    averages = table[table["group"].isin(_AVERAGES)]
    wide = averages.pivot_table(
        index=["model", "method"], columns="group", values="accuracy", sort=False
    ).reset_index()
    chosen = table[table["method"] == "ablated"].drop_duplicates("model").set_index("model")
    wide["components"] = [
        [Component(row.model, name) for name in chosen.loc[row.model, "ablated"]]
        if row.method == "ablated" and row.model in chosen.index
        else []
        for row in wide.itertuples()
    ]
    titles = {
        "worst": "worst group",
        "mean": "mean of groups",
        "test": "all test images",
        "train_weighted": "weighted as in training",
    }
    fields = [
        Field("model", "model", number=False),
        Field("method", "method", method_name, number=False),
        *(Field(name, titles[name], percent) for name in _AVERAGES if name in wide),
        Field("components", "components ablated", number=False),
    ]
    return Listing(
        "spurious-averages",
        "Averages, and what was ablated",
        Caption(
            "Accuracy of the worst group and the three averages.",
            "Random: mean over the draws of each draw’s own value.",
            plural(_group_size(table), "image") + " in the smallest group",
        ),
        fields,
        wide,
        run.files["spurious"],
    )
