"""The models of a run side by side: a part of the section on scores."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline_lib.comparison import CARRIED
from pipeline_lib.config import is_clip
from pipeline_lib.report.atlas import from_input
from pipeline_lib.report.blocks import Block, Caption, Component, Field, Figure, Listing
from pipeline_lib.report.charts import as_percent, legend_above, matrix
from pipeline_lib.report.collect import Run
from pipeline_lib.report.style import MARKERS, WIDEST, Panel, colour, draw_panel, series_colour
from pipeline_lib.report.words import decimal, listed, plural


def comparison_blocks(run: Run) -> list[Block]:
    """Depth and concentration of each feature, and components that do the same."""
    blocks: list[Block] = []
    if len(run.models_in(run["comparison"])) > 1:
        blocks.append(_where(run))
    if len(run.models_in(run["counterparts"])) > 1:
        blocks += [_beside(run), _counterparts(run)]
    if len(run["similarity"]):
        blocks.append(_alike(run))
    return blocks


def _compared_with(run: Run, models: list[str]) -> list[str]:
    """Models that the others are held beside: those that are CLIPs; without one, the first."""
    clips = [name for name in models if is_clip(run.config["models"][name]["id"])]
    return clips or models[:1]


def _where(run: Run) -> Figure:
    table = run["comparison"]
    ends = {f"carriers_share_{end}": table[f"carriers_{end}"] for end in ("low", "high")}
    shares = table.assign(**{name: column / table["components"] for name, column in ends.items()})
    panels = [
        _panel(table, run, "depth", "depth; 0\u202f%: the input", spread="depth_spread"),
        _panel(shares, run, "carriers_share", "share of the components that carry it"),
    ]
    known = table["depth_low"].notna().any()
    return Figure(
        "comparison",
        "Where features live in each model",
        Caption(
            "Mean depth of a feature’s score, with one standard deviation of the depth to either "
            f"side as a pale line, and the share of the components that have {100 * CARRIED:.0f}"
            "\u202f% of its positive scores: few means concentrated.",
            "Depth is a component’s layer over the last layer of its model, weighted by the "
            "positive scores; the bias is left out."
            + (
                " Strong lines: 95\u202f% intervals (1.96 standard errors by redrawing the "
                "images), which may be shorter than the mark."
                if known
                else " Without intervals: these need every image."
            ),
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
                axes.hlines(shifted, low, high, color=tone, linewidth=1, alpha=0.45)
            ends = rows[f"{column}_low"], rows[f"{column}_high"]
            axes.hlines(shifted, *ends, color=tone, linewidth=2.2)
            marker = MARKERS[order % len(MARKERS)]
            axes.plot(rows[column], shifted, marker, color=tone, markersize=5.5, label=model)
        for place in places[:-1]:
            axes.axhline(place + 0.5, color=colour("line"), linewidth=0.6)
        axes.set_yticks(places, features)
        axes.invert_yaxis()
        axes.set_xlim(
            0, 1.02 if spread else 1.1 * float(table[[column, f"{column}_high"]].max().max())
        )
        axes.set_xlabel(label)
        as_percent(axes)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        legend_above(axes, columns=3)

    return draw_panel(draw, "", WIDEST, 1.4 + 0.62 * len(features))


def _compared(run: Run) -> str:
    """Over how many images components were compared."""
    made = run.provenance[run.provenance["table"] == "counterparts"]
    return plural(int(made["facts"].iloc[0]["images"]), "image")


_KERNELS = (
    "Linear centred kernel alignment of their contributions as mapped to CLIP: 1 for the same "
    "geometry up to turning and scaling, near 0 by chance."
)


def _beside(run: Run) -> Figure:
    """For each model beside one it is compared with: where the like of each component stands."""
    table = run["counterparts"]
    models = run.models_in(table)
    bases = _compared_with(run, models)
    places = pd.concat([_places(run, model) for model in models])
    depths = places[["model", "component", "depth"]].add_prefix("other_")
    table = table.merge(places).merge(depths).sort_values("place")
    pairs = [(model, base) for base in bases for model in models if model != base]
    parts = [table[(table["model"] == m) & (table["other_model"] == b)] for m, b in pairs]
    shown = ["model", "id", "kind", "depth", "other_model", "other_id", "other_depth", "similarity"]
    return Figure(
        "counterparts",
        "Where the like of each component stands",
        Caption(
            f"For every component of a model the depth of the component of {listed(bases)} that is "
            "most like it; the stronger the mark, the more alike.",
            f"{_KERNELS} Depth is the layer over the last layer; the line: the component’s own.",
            _compared(run),
            "The nearest one is drawn however far it is: a pale mark says that there is no like.",
        ),
        [_beside_panel(part, *pair) for part, pair in zip(parts, pairs, strict=True)],
        pd.concat(parts)[shown],
        run.files["counterparts"],
    )


def _places(run: Run, model: str) -> pd.DataFrame:
    """Components of a model, the bias left out: place from the input on, kind, block and depth."""
    table = run["components"]
    table = table[(table["model"] == model) & (table["kind"] != "bias")]
    table = from_input(table.drop_duplicates("component"))
    depth = table["layer"].clip(lower=0) / max(int(table["layer"].max()), 1)
    table = table.assign(place=range(len(table)), depth=depth)
    return table[["model", "component", "place", "kind", "block", "depth"]]


def _beside_panel(part: pd.DataFrame, model: str, base: str) -> Panel:
    heads = part["kind"].isin(["head", "attention"])

    def draw(axes: Axes) -> None:
        axes.step(part["place"], part["depth"], where="mid", color=colour("faint"), linewidth=1)
        for order, (label, rows) in enumerate((("heads", part[heads]), ("others", part[~heads]))):
            axes.scatter(
                rows["place"],
                rows["other_depth"],
                s=26,
                marker=MARKERS[order],
                color=series_colour(order),
                alpha=rows["similarity"].clip(0.08, 1).to_numpy(),
                linewidth=0,
                label=label,
            )
        axes.set_ylim(-0.05, 1.05)
        axes.set_xlabel(f"components of {model}, from the input on")
        axes.set_ylabel(f"depth in {base}")
        axes.set_xticks([])
        as_percent(axes, "y")
        axes.grid(axis="y")
        legend_above(axes, 2)

    return draw_panel(draw, model, 3.3, 2.6)


def _counterparts(run: Run) -> Listing:
    """For the top component of each feature of the models compared with, its like in the others."""
    table, scores = run["counterparts"], run["scores"]
    models = run.models_in(table)
    bases = _compared_with(run, models)
    others = [name for name in models if bases != [name]]
    pairs = table.set_index(["model", "component", "other_model"])
    own = pd.concat(
        [scores[(scores["model"] == base) & (scores["kind"] != "bias")] for base in bases]
    )
    tops = own.loc[own.groupby(["model", "feature"], sort=False)["score"].idxmax()]
    rows = []
    for top in tops.itertuples():
        row = {"feature": top.feature, "model": top.model, "top": Component(top.model, top.id)}
        for other in others:
            row |= {other: "–", f"{other}-similarity": float("nan")}
            if other != top.model:
                found = pairs.loc[(top.model, top.component, other)]
                row[other] = Component(other, found["other_id"])
                row[f"{other}-similarity"] = float(found["similarity"])
        rows.append(row)
    fields = [
        Field("feature", "feature", number=False),
        *([Field("model", "model", number=False)] if len(bases) > 1 else []),
        Field(
            "top",
            "top component" if len(bases) > 1 else f"top component of {bases[0]}",
            number=False,
        ),
    ]
    for other in others:
        fields.append(Field(other, other, number=False))
        fields.append(Field(f"{other}-similarity", "alike", decimal))
    return Listing(
        "top-counterparts",
        "Which component of another model does the same?",
        Caption(
            f"For the best component of each feature in {listed(bases)}: the component of every "
            "other model whose contributions tell the same images apart most alike.",
            f"{_KERNELS} The table behind has every component of every model, and so has the card "
            "of each.",
            _compared(run),
            "The nearest one is named however far it is: read the number.",
        ),
        fields,
        pd.DataFrame(rows),
        run.files["counterparts"],
    )


def _alike(run: Run) -> Figure:
    """How alike every two components of a model are."""
    table, panels, rows = run["similarity"], [], []
    for model in run.models_in(table):
        places = _places(run, model).set_index("component")
        known = table[["component", "other_component"]].isin(places.index).all(axis=1)
        pairs = table[known & (table["model"] == model)]
        one, other = (places.loc[pairs[name]] for name in ("component", "other_component"))
        values = np.full((len(places), len(places)), np.nan)
        values[one["place"], other["place"]] = pairs["similarity"]
        values[other["place"], one["place"]] = pairs["similarity"]
        groups = ["stem" if block < 0 else str(block) for block in places["block"]]
        panels.append(draw_panel(matrix(values, groups), model, 3.5, 2.9))
        rows.append(pairs.assign(block=one["block"].values, other_block=other["block"].values))
    means = pd.concat(rows).groupby(["model", "block", "other_block"], sort=False)["similarity"]
    return Figure(
        "similarity",
        "How alike the components of a model are",
        Caption(
            "Every two components of a model, from the input on and grouped by block.",
            _KERNELS,
            _compared(run),
            "Components that are alike tell the same images apart, though one may undo what the "
            "other says. The table has means over two blocks, the file every pair.",
        ),
        panels,
        means.mean().reset_index(),
        run.files["similarity"],
    )
