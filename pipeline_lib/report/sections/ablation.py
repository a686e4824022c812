"""Mean ablation: curves over layers, and the components that matter most alone."""

from __future__ import annotations

from typing import Literal

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
from pipeline_lib.report.style import LINES, Panel, colour, draw_panel
from pipeline_lib.report.words import images_of, listed, percent, plural, spaced

#: Rows of singly ablated components that the page lists for each model.
TOP_SINGLE = 5
_Side = Literal["top", "bottom"]
#: Curves with their words and colours.
_CURVES = {
    "from_input": ("from the input", "c1"),
    "from_output": ("from the output", "c2"),
    "by_effect": ("largest effect first", "c4"),
    "random": ("random order", "faint"),
}
_LEVELS: dict[str, tuple[str, _Side]] = {
    "all_mlp": ("all MLPs", "bottom"),
    "all_attention": ("all attention", "top"),
}


def ablation_blocks(run: Run) -> list[Block]:
    """Curves, and the components whose ablation costs most."""
    return [_curves(run), _single(run)]


def _curves(run: Run) -> Figure:
    table = run["ablation"]
    panels = [_curve_panel(table[table["model"] == name], name) for name in run.models_in(table)]
    targets = [spaced(str(name)) for name in dict.fromkeys(table["target"])]
    settings = run.config["applications"]["ablation"]
    tasks = f", mean over {listed(targets)}," if len(targets) > 1 else ""
    return Figure(
        "ablation",
        "Accuracy while layers are ablated",
        Caption(
            f"Accuracy{tasks} as layers are ablated from the input on, from the output back and in "
            "random order, and as components are ablated, the largest direct effect first; dotted: "
            "all MLPs, or all attention. Pale: 95\u202f% intervals over images.",
            "The direct effect of each ablated component is replaced by its mean over "
            f"{images_of(settings['reference_split'])}. Classifiers: "
            f"{_classifiers(run, table)}.",
            f"{plural(int(table['n'].max()), 'image')} of {settings['dataset']} "
            f"({images_of(settings['split'])})",
            "Only direct effects are removed: later components still see what earlier ones wrote.",
        ),
        panels,
        table[table["curve"] != "single"],
        run.files["ablation"],
    )


def _classifiers(run: Run, table: pd.DataFrame) -> str:
    used = table.groupby("classifier", sort=False)["model"].unique()
    words = {"own": "the model’s own", "zero_shot": "zero-shot by text", "probe": "a linear probe"}
    return "; ".join(
        f"{words.get(str(k), spaced(str(k)))} ({', '.join(v)})" for k, v in used.items()
    )


def _curve_panel(part: pd.DataFrame, model: str) -> Panel:
    def draw(axes: Axes) -> None:
        for place, (curve, (words, tone)) in enumerate(_CURVES.items()):
            _draw_curve(axes, part[part["curve"] == curve], words, colour(tone), place)
        for curve, (words, side) in _LEVELS.items():
            _draw_level(axes, part.loc[part["curve"] == curve, "accuracy"], words, side)
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, 1)
        axes.set_xlabel("layers or components ablated")
        as_percent(axes, "x")
        as_percent(axes, "y")
        axes.grid(axis="y")
        legend_above(axes, columns=2)

    return draw_panel(draw, model, 3.0, 2.6)


def _draw_curve(axes: Axes, steps: pd.DataFrame, words: str, tone: str, place: int) -> None:
    """Mean over the tasks against the share of the steps, with that of the intervals."""
    if len(steps):
        mean = steps.groupby("step")[["accuracy", "low", "high"]].mean()
        share = mean.index / max(1, steps["step"].max())
        axes.fill_between(share, mean["low"], mean["high"], color=tone, alpha=0.12, linewidth=0)
        axes.plot(share, mean["accuracy"], color=tone, linestyle=LINES[place], label=words)


def _draw_level(axes: Axes, accuracy: pd.Series, words: str, side: _Side) -> None:
    """Dotted line with its words at the right, standing on it or hanging from it."""
    if accuracy.empty:
        return
    axes.axhline(accuracy.mean(), color=colour("muted"), linestyle=(0, (1, 1.6)), linewidth=1.1)
    axes.annotate(
        words,
        (0.99, accuracy.mean()),
        xytext=(0, 2 if side == "bottom" else -2),
        textcoords="offset points",
        ha="right",
        va=side,
        fontsize=7.5,
        color=colour("muted"),
        bbox={"facecolor": colour("surface"), "edgecolor": "none", "alpha": 0.8, "pad": 0.3},
    )


def _single(run: Run) -> Listing:
    table = run["ablation"]
    full = table[table["curve"] == "none"].groupby(["model", "target"])["accuracy"].mean()
    single = table[table["curve"] == "single"].copy()
    single["full"] = [full.get((row.model, row.target), np.nan) for row in single.itertuples()]
    single["loss"] = single["full"] - single["accuracy"]
    top = (
        single.sort_values("loss", ascending=False, kind="stable").groupby("model").head(TOP_SINGLE)
    )
    order = {name: place for place, name in enumerate(run.models)}
    top = top.sort_values("model", key=lambda names: names.map(order), kind="stable")
    top["interval"] = [f"{percent(row.low)} to {percent(row.high)}" for row in top.itertuples()]
    top["component"] = [Component(row.model, row.ablated) for row in top.itertuples()]
    fields = [
        Field("model", "model", number=False),
        Field("target", "task", number=False),
        Field("component", "component", number=False),
        Field("full", "full model", percent),
        Field("accuracy", "without it", percent),
        Field("interval", "95\u202f% interval"),
        Field("loss", "lost", percent),
    ]
    return Listing(
        "single-ablation",
        "Components whose ablation costs most",
        Caption(
            f"The {TOP_SINGLE} components of each model that cost most accuracy when each alone is "
            "replaced by its mean.",
            "Ranked on the images on which the accuracy is reported.",
            plural(int(table["n"].max()), "image"),
            "The highest of many losses is partly luck; small differences mean little.",
        ),
        fields,
        top,
        run.files["ablation"],
        empty="No component was ablated alone.",
    )
