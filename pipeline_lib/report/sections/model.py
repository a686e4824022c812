"""Sections on the decomposition itself and on the maps to the CLIP space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from pipeline_lib.report.blocks import Block, Caption, Field, Figure, Listing, Panel, Section
from pipeline_lib.report.charts import dot_rows
from pipeline_lib.report.collect import Run
from pipeline_lib.report.style import WIDEST, colour, draw_panel
from pipeline_lib.report.words import (
    decimal,
    duration,
    method_name,
    percent,
    plural,
    power_of_ten,
    scientific,
    size,
    whole,
)

#: Kinds of components with their words.
_KINDS = {
    "head": "head",
    "attention": "attention",
    "mlp": "MLP",
    "conv": "convolution",
    "stem": "stem",
    "bias": "bias",
}


def contributions_section(run: Run) -> Section:
    """What each model was split into, and how exactly the parts sum to the whole."""
    blocks: list[Block] = [_models(run)]
    if len(run["exactness"]):
        blocks += [_exactness_figure(run), _exactness_table(run)]
    return Section(
        key="contributions",
        title="Contributions",
        about="Each model’s representation, written as an exact sum of the direct contributions "
        "of its parts: every attention head, MLP, convolution, the stem, and the biases.",
        blocks=blocks,
    )


def _models(run: Run) -> Listing:
    rows = []
    for model in run.models:
        settings = run.config["models"][model]
        parts = run["components"]
        parts = parts[parts["model"] == model].drop_duplicates("component")
        kinds = parts["kind"].value_counts()
        facts = model_facts(run, model)
        rows.append(
            {
                "model": model,
                "id": settings["id"],
                "weights": str(facts.get("weight_hash") or settings.get("weights") or "–")[:12],
                "components": len(parts),
                "kinds": ", ".join(
                    plural(int(kinds[kind]), _KINDS[kind]) for kind in _KINDS if kind in kinds
                ),
                "readout": str(facts.get("readout", "–")),
            }
        )
    fields = [
        Field("model", "model", number=False),
        Field("id", "id", number=False, code=True),
        Field("weights", "weights (hash)", number=False),
        Field("components", "components", whole),
        Field("kinds", "of which", number=False),
        Field("readout", "readout", number=False),
    ]
    return Listing("models", "Models", None, fields, pd.DataFrame(rows), run.files["components"])


def model_facts(run: Run, model: str) -> dict[str, object]:
    """What the dump of a model says of its making."""
    facts: dict[str, object] = {}
    for row in run.provenance.itertuples():
        if row.artifact.startswith((f"contributions/{model}/", f"report/exactness/{model}/")):
            facts |= row.facts
    return facts


def _exactness_figure(run: Run) -> Figure:
    table = run["exactness"]
    data = pd.DataFrame(
        [
            {"model": row.model, "dataset": row.dataset, "percentile": place, "error": error}
            for row in table.itertuples()
            for place, error in enumerate(row.percentiles)
        ]
    )
    height = 0.9 + 0.26 * len(table)
    return Figure(
        "exactness",
        "How exactly the components sum to the representation",
        Caption(
            "Relative error of the sum: the middle half of the images (thick), all of them (thin) "
            "and the median (dot).",
            "‖Σ contributions − representation‖ / ‖representation‖ of every image, in the "
            "precision of the dump. The dashed line is the tolerance above which a job fails.",
            plural(int(table["n"].sum()), "decomposed image"),
        ),
        [draw_panel(_error_rows(table), "", WIDEST, height)],
        data,
        run.files["exactness"],
        columns=1,
    )


def _error_rows(table: pd.DataFrame) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        places = np.arange(len(table))
        spread = np.stack(table["percentiles"].to_list()).astype(np.float64)
        spread = spread.clip(min=1e-12)
        axes.hlines(places, spread[:, 0], spread[:, 100], color=colour("c1"), linewidth=1)
        axes.hlines(places, spread[:, 25], spread[:, 75], color=colour("c1"), linewidth=4)
        axes.plot(
            spread[:, 50],
            places,
            linestyle="none",
            marker="o",
            markersize=7,
            color=colour("c1"),
            markeredgecolor=colour("surface"),
            markeredgewidth=1.2,
        )
        tolerance = float(table["tolerance"].max())
        axes.axvline(tolerance, color=colour("c4"), linestyle=(0, (4, 3)), linewidth=1.2)
        axes.annotate(
            "tolerance",
            (tolerance, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4, 2),
            textcoords="offset points",
            ha="right",
            color=colour("c4"),
            fontsize=8.5,
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
        axes.set_xlim(spread.min() / 3, tolerance * 3)
        axes.set_yticks(places, table["model"] + " · " + table["dataset"])
        axes.invert_yaxis()
        axes.margins(y=0.5 / len(table))
        axes.set_xlabel("relative sum error (logarithmic)")
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")

    return draw


def _exactness_table(run: Run) -> Listing:
    table = run["exactness"].copy()
    table["rate"] = table["n"] / table["seconds"].where(table["seconds"] > 0)
    fields = [
        Field("model", "model", number=False),
        Field("dataset", "data set", number=False),
        Field("n", "images", whole),
        Field("width", "width", whole),
        Field("median", "median error", scientific),
        Field("worst", "worst error", scientific),
        Field("bytes", "size on disk", size),
        Field("seconds", "time", duration),
        Field("rate", "images/s", lambda value: decimal(value, 1)),
    ]
    return Listing(
        "dumps",
        "Exactness and throughput",
        Caption(
            "Each dump: its sum error, its size on disk, and the time its decomposition took.",
            "Times are from the first image read to the shard written, summed over the shards; "
            "loading of the model is left out.",
            plural(len(table), "dump"),
            "Jobs may have run beside others on the same machine.",
        ),
        fields,
        table,
        run.files["exactness"],
    )


def maps_section(run: Run) -> Section:
    """How well the mapped contributions point to the CLIP embedding."""
    table = run["map_metrics"]
    blocks = [_cosines(run)] if table["cosine"].notna().any() else []  # moments have none
    return Section(
        key="maps",
        title="Maps",
        about="Linear maps that take each component’s contribution to the CLIP space, where it "
        "can be compared with text. For a CLIP model the map is the identity.",
        blocks=[*blocks, _map_table(run)] if len(table) else [],
        not_run=run.not_run.get("maps", ""),
    )


def _cosines(run: Run) -> Figure:
    table = run["map_metrics"]
    held = table[table["split"] == "heldout"]
    wide = {
        name: held.pivot_table(index="model", columns="method", values=name, sort=False)
        for measure in ("cosine", "recall_at_1")
        for name in (measure, f"{measure}_low", f"{measure}_high")
    }
    rows = [str(name) for name in wide["cosine"].index]
    methods = list(wide["cosine"])
    height = 1.0 + 0.15 * (1 + len(methods)) * len(rows)

    def draw(measure: str, label: str, **options: Any) -> Panel:
        values = {str(name): wide[measure][name].tolist() for name in methods}
        ranges = {
            str(name): (wide[f"{measure}_low"][name], wide[f"{measure}_high"][name])
            for name in methods
        }
        return draw_panel(
            dot_rows(rows, values, label, ranges=ranges, **options), "", WIDEST, height
        )

    return Figure(
        "map-quality",
        "Held-out quality of the maps",
        Caption(
            "Mean cosine between the mapped representation and its target, and the share of images "
            "that are nearest to their own target; lines are 95\u202f% intervals over images.",
            f"Fitted on one part of the images of {held['dataset'].iloc[0]}, measured on another; "
            "each method on the same split. The table of all maps has test images, too, on which "
            "no strength and no last epoch was chosen.",
            plural(int(held["n"].max()), "held-out image"),
            "A high cosine can come from the mean alone; the share of images found is the harder "
            "test.",
        ),
        [
            draw("cosine", "mean cosine", share=False, limits=(None, 1.0)),
            draw("recall_at_1", "nearest to its own target", limits=(0.0, 1.0)),
        ],
        held,
        run.files["map_metrics"],
        columns=2,
    )


def _map_table(run: Run) -> Listing:
    table = run["map_metrics"].copy()
    table["used"] = table["chosen"].astype(bool).map({True: "yes", False: ""})
    fields = [
        Field("model", "model", number=False),
        Field("method", "method", method_name, number=False),
        Field("used", "used later", number=False),
        Field("split", "split", lambda name: name.replace("heldout", "held out"), number=False),
        Field("n", "images", whole),
        Field("cosine", "cosine", decimal),
        Field("recall_at_1", "found first", percent),
        Field("recall_at_5", "in first five", percent),
        Field("explained", "variance explained", percent),
        Field("seconds", "fit", duration),
    ]
    return Listing("map-metrics", "All maps", None, fields, table, run.files["map_metrics"])
