"""Spurious cues: accuracy by group before and after, and what was ablated."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline_lib.report.blocks import (
    Block,
    Caption,
    Component,
    Field,
    Figure,
    Listing,
)
from pipeline_lib.report.charts import as_percent, legend_above
from pipeline_lib.report.collect import Run
from pipeline_lib.report.findings import ablated_count
from pipeline_lib.report.style import Panel, colour, draw_panel
from pipeline_lib.report.words import method_name, percent, plural, spaced, whole

#: Methods that are drawn, each with its colour.
_BARS = {"full": "faint", "ablated": "c1", "random": "c2"}
_AVERAGES = ("worst", "mean", "test", "train_weighted")


def spurious_blocks(run: Run) -> list[Block]:
    """Groups before and after, the averages, and what was ablated."""
    return [_groups(run), _averages(run), _ablated(run)]


def _groups(run: Run) -> Figure:
    table, summary = run["spurious"], run["spurious_summary"]
    names = run.models_in(summary)
    panels = [_group_panel(summary[summary["model"] == name], name) for name in names]
    settings = run.config["applications"]["spurious"]
    draws = table.loc[table["method"] == "random", "draw"].nunique()
    chosen = "chosen" if settings.get("top_k") else "these and their number chosen"
    return Figure(
        "spurious",
        "Accuracy by group before and after",
        Caption(
            "Accuracy of each group for the full model, after ablation of the components of the "
            f"cue, and after that of as many random components (mean of {plural(draws, 'draw')}), "
            "each with its 95\u202f% interval.",
            f"The {ablated_count(table)} with the largest score for the spurious words less that "
            f"for the core words, {chosen} on the {settings['select_split']} images, replaced by "
            f"their means; reported on the {settings['report_split']} images. Intervals over "
            f"{plural(int(summary['seeds'].max()), 'redraw')} of the images, choice included.",
            f"{plural(_group_size(table), 'image')} in the smallest group",
            "The worst group is the lowest of several, so it lies below the average even by luck.",
        ),
        panels,
        summary,
        run.files["spurious_summary"],
    )


def _group_size(table: pd.DataFrame) -> int:
    groups = table[~table["group"].isin(_AVERAGES)]
    return int(groups["n"].min())


def _group_panel(part: pd.DataFrame, model: str) -> Panel:
    groups = [name for name in dict.fromkeys(part["group"]) if name not in _AVERAGES]
    rows = [*groups, *(name for name in ("worst", "test") if (part["group"] == name).any())]
    shown = {name: tone for name, tone in _BARS.items() if (part["method"] == name).any()}

    def draw(axes: Axes) -> None:
        height = 0.78 / len(shown)
        for order, (method, tone) in enumerate(shown.items()):
            bars = part[part["method"] == method].set_index("group").reindex(rows)
            places = np.arange(len(rows)) + height * (order - (len(shown) - 1) / 2)
            name = method_name(method)
            axes.barh(places, bars["accuracy"], 0.86 * height, color=colour(tone), label=name)
            low, high = bars["accuracy_low"], bars["accuracy_high"]
            axes.hlines(places, low, high, color=colour("surface"), linewidth=2.6)
            axes.hlines(places, low, high, color=colour("ink"), linewidth=1)
        if len(rows) > len(groups):
            axes.axhline(len(groups) - 0.5, color=colour("faint"), linewidth=0.8)
        names = {"worst": "worst group", "test": "all test images"}
        axes.set_yticks(range(len(rows)), [names.get(row, spaced(row)) for row in rows])
        axes.invert_yaxis()
        axes.margins(y=0.02)
        axes.set_xlim(0, 1.02)
        as_percent(axes)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        legend_above(axes, columns=3)

    return draw_panel(draw, model, 3.1, 1.2 + 0.42 * len(rows))


def _averages(run: Run) -> Listing:
    table = run["spurious"]
    averages = table[table["group"].isin(_AVERAGES)]
    wide = averages.pivot_table(
        index=["model", "method"], columns="group", values="accuracy", sort=False
    ).reset_index()
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
    ]
    return Listing(
        "spurious-averages",
        "The averages, by every way to choose",
        Caption(
            "Accuracy of the worst group and the three averages, for each way to choose what is "
            "ablated.",
            "Random components: mean over the draws of each draw’s own value. Early layers: the "
            "components nearest to the input. Group labels: chosen for the worst group of the "
            "images to choose on. As published: the ten largest scores.",
            plural(_group_size(table), "image") + " in the smallest group",
        ),
        fields,
        wide,
        run.files["spurious"],
    )


def _ablated(run: Run) -> Listing:
    table = run["spurious"]
    chosen = table[table["method"] == "ablated"].drop_duplicates("model")
    data = pd.DataFrame(
        {
            "model": chosen["model"],
            "count": chosen["components"],
            "components": [
                [Component(row.model, name) for name in row.ablated] for row in chosen.itertuples()
            ],
        }
    )
    fields = [
        Field("model", "model", number=False),
        Field("count", "number", whole),
        Field("components", "components", number=False),
    ]
    return Listing(
        "spurious-components",
        "What was ablated",
        Caption(
            "The components that were replaced by their means, the most spurious first.",
            "Score for the spurious words less that for the core words.",
            plural(len(data), "model"),
        ),
        fields,
        data,
        run.files["spurious"],
    )
