"""The models of a run side by side: a part of the section on scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline_lib.report.blocks import Block, Caption, Component, Field, Figure, Listing
from pipeline_lib.report.charts import as_percent, legend_above
from pipeline_lib.report.collect import Run
from pipeline_lib.report.style import MARKERS, WIDEST, Panel, colour, draw_panel, series_colour
from pipeline_lib.report.words import plural


def comparison_blocks(run: Run) -> list[Block]:
    """Depth and concentration of each feature, and components that do the same."""
    blocks: list[Block] = []
    if run["comparison"]["model"].nunique() > 1:
        blocks.append(_where(run))
    if len(run["counterparts"]):
        blocks.append(_counterparts(run))
    return blocks


def _where(run: Run) -> Figure:
    table = run["comparison"]
    panels = [
        _panel(table, run, "depth", "depth; 0\u202f%: the input", spread="depth_spread"),
        _panel(table, run, "carriers_share", "share of the components that carry it"),
    ]
    return Figure(
        "comparison",
        "Where features live in each model",
        Caption(
            "Mean depth of a feature’s score, with one standard deviation to either side, and the "
            "share of the components that carry 90\u202f% of it: few means concentrated.",
            "Depth is a component’s layer over the last layer of its model, weighted by the "
            "positive scores.",
            plural(len(run.models_in(table)), "model"),
            "Direct effects only: a feature made early and written out late counts as late.",
        ),
        panels,
        table,
        run.files["comparison"],
        columns=2,
    )


def _panel(
    table: pd.DataFrame, run: Run, column: str, label: str, spread: str | None = None
) -> Panel:
    features = list(dict.fromkeys(table["feature"]))
    models = run.models_in(table)

    def draw(axes: Axes) -> None:
        places = np.arange(len(features))
        for order, model in enumerate(models):
            rows = table[table["model"] == model].set_index("feature").reindex(features)
            shifted = places + 0.11 * (order - (len(models) - 1) / 2)
            tone = series_colour(order)
            if spread:
                low = (rows[column] - rows[spread]).clip(lower=0)
                high = (rows[column] + rows[spread]).clip(upper=1)
                axes.hlines(shifted, low, high, color=tone, linewidth=1, alpha=0.5)
            marker = MARKERS[order % len(MARKERS)]
            axes.plot(rows[column], shifted, marker, color=tone, markersize=5.5, label=model)
        for place in places[:-1]:
            axes.axhline(place + 0.5, color=colour("line"), linewidth=0.6)
        axes.set_yticks(places, features)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02 if spread else 1.1 * float(table[column].max()))
        axes.set_xlabel(label)
        as_percent(axes)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        legend_above(axes, columns=3)

    return draw_panel(draw, "", WIDEST, 1.4 + 0.62 * len(features))


def _compared(run: Run) -> int:
    """Over how many images components of different models were compared."""
    made = run.provenance[run.provenance["table"] == "counterparts"]
    return int(made["facts"].iloc[0]["images"])


def _counterparts(run: Run) -> Listing:
    """For the top component of each feature of the first model, its like in the others."""
    table, scores = run["counterparts"], run["scores"]
    first, *others = run.models_in(table)
    own = scores[(scores["model"] == first) & (scores["kind"] != "bias")]
    tops = own.loc[own.groupby("feature", sort=False)["score"].idxmax()]
    pairs = table[table["model"] == first].set_index(["component", "other_model"])
    rows = []
    for top in tops.itertuples():
        row = {"feature": top.feature, "top": Component(first, top.id)}
        for other in others:
            found = pairs.loc[(top.component, other)]
            row[other] = Component(other, found["other_id"])
            row[f"{other}-similarity"] = float(found["similarity"])
        rows.append(row)
    fields = [
        Field("feature", "feature", number=False),
        Field("top", f"top component of {first}", number=False),
    ]
    for other in others:
        fields.append(Field(other, other, number=False))
        fields.append(Field(f"{other}-similarity", "alike", lambda value: f"{value:.2f}"))
    return Listing(
        "counterparts",
        "Which component of another model does the same?",
        Caption(
            f"For the best component of each feature in {first}: the component of every other "
            "model whose contributions tell the same images apart most alike.",
            "Linear centred kernel alignment of their contributions as mapped to CLIP: 1 for the "
            "same geometry up to turning and scaling, near 0 by chance. The table behind has "
            "every component of every model.",
            plural(_compared(run), "image"),
            "The nearest one is named however far it is: read the number.",
        ),
        fields,
        pd.DataFrame(rows),
        run.files["counterparts"],
    )
