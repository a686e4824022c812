"""What the applications must reach on a run whose truth is known, and what they reached.

The second half of docs/validation.md: each bar with what was measured, and the numbers behind it,
model by model, the losing ones with the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline_lib.intervals import mean_interval

#: Factors that name what is in a picture, as in `validation_page`.
MAIN = ("shape", "colour", "texture", "scene")
#: Gain in precision, and in the worst group's accuracy, that a bar asks for.
GAIN = 0.1
#: Average accuracy that the removal of a cue may cost.
COST = 0.01
#: Mass of a map in the mask of the object over the area of the mask.
MASS = 2.0
#: Properties of a model, and models beside CLIP, that retrieval must reach the gain in.
PROPERTIES, MODELS = 3, 4

_DRAWS = 1000

#: Kinds of query, and what a bar is beside those that were set beforehand.
_QUERIES = {
    "text": "",
    "image": "",
    "phrase": " (beside the bars: a text that names another property too)",
}

Row = Sequence[object]
TableWriter = Callable[[Sequence[str], Sequence[Row]], str]


def bars_section(tables: Mapping[str, pd.DataFrame], write: TableWriter) -> str:
    """The bars as Markdown; empty where a run has none of the applications.

    Parameters
    ----------
    tables
        Any of the tables retrieval, segmentation, segmentation_images, spurious_summary and
        code_summary.
    write
        Writes a table from its head and its rows.
    """
    parts = {name: tables[name] for name in tables if len(tables[name])}
    bars: list[Row] = []
    details: list[str] = []
    if "retrieval" in parts:
        bars += retrieval_bars(parts["retrieval"])
        asked = [q for q in _QUERIES if (parts["retrieval"]["query"] == q).any()]
        details += [_retrieval(parts["retrieval"], query, write) for query in asked]
        details += [_leakage(parts["retrieval"], write)]
    if "segmentation" in parts:
        bars += segmentation_bars(parts["segmentation"], parts["segmentation_images"])
        details += [_segmentation(parts["segmentation"], parts["segmentation_images"], write)]
    if "spurious_summary" in parts:
        bars += spurious_bars(parts["spurious_summary"])
        details += [_spurious(parts["spurious_summary"], write)]
    if "code_summary" in parts:
        details += [_codes(parts["code_summary"], write)]
    if not bars:
        return ""
    text = (
        "## Applications: the bars\n\n"
        "On images that no choice was made on. *Whole* is the whole representation, compared in "
        "the same way. Intervals are 95 %.\n\n"
    )
    return "\n\n".join([text + write(["bar", "measured", "met"], bars), *details])


def retrieval_bars(table: pd.DataFrame) -> list[Row]:
    """Rows of retrieval: bar, what was measured, verdict."""
    rows: list[Row] = []
    for query in [name for name in _QUERIES if (table["query"] == name).any()]:
        wide = precisions(table, query)
        gain = (wide["components"] - wide["representation"]).unstack("feature")
        reached = (gain >= GAIN).sum(axis=1) >= PROPERTIES
        names = ", ".join(reached.index[reached]) or "none"
        measured = (
            f"{int(reached.sum())} of {len(reached)} models ({names}); gains from "
            f"{_points(gain.min(axis=None))} to {_points(gain.max(axis=None))}"
        )
        least = wide["representation"].min()
        if 1 - least < GAIN:
            measured += (
                f"; the whole's own precision is at least {least:.1%}, so that no more than "
                f"{100 * (1 - least):.1f} points are possible"
            )
        rows.append(
            [
                f"retrieval by {query}: precision@10 {100 * GAIN:.0f} points above the whole's in "
                f"{PROPERTIES} of {len(MAIN)} properties, in {MODELS} models{_QUERIES[query]}",
                measured,
                _verdict(reached.sum() >= MODELS),
            ]
        )
    leaks = leakage(table)
    below = leaks["components"] < leaks["representation"]
    rows.append(
        [
            "retrieval by image: less of unasked properties than the whole",
            f"{int(below.sum())} of {len(below)} (model, property)s; mean "
            f"{leaks['components'].mean():.1%} against {leaks['representation'].mean():.1%}, "
            f"chance {leaks['chance'].mean():.1%}",
            _verdict(bool(below.all())),
        ]
    )
    return rows


def precisions(table: pd.DataFrame, query: str, column: str = "precision") -> pd.DataFrame:
    """Precision at 10 on the property asked for: (model, feature) by method."""
    asked = table[(table["query"] == query) & (table["k"] == 10)]
    asked = asked[(asked["measured"] == asked["feature"]) & asked["feature"].isin(MAIN)]
    return asked.pivot_table(
        index=["model", "feature"], columns="method", values=column, sort=False
    )


def leakage(table: pd.DataFrame) -> pd.DataFrame:
    """Mean precision at 10 on the main properties not asked for: (model, feature) by method."""
    rows = table[(table["query"] == "image") & (table["k"] == 10)]
    rows = rows[rows["feature"].isin(MAIN) & rows["measured"].isin(MAIN)]
    rows = rows[rows["measured"] != rows["feature"]]
    return rows.pivot_table(
        index=["model", "feature"], columns="method", values="precision", sort=False
    )


def segmentation_bars(table: pd.DataFrame, images: pd.DataFrame) -> list[Row]:
    """Rows of segmentation and heat maps: bar, what was measured, verdict."""
    wide = mean_iou(table)
    best = wide.drop(columns="decomposition").max(axis=1)
    above = wide["decomposition"] > best
    ratios = mass_ratios(images)
    least = ratios.loc[ratios["ratio"].idxmin()]
    return [
        [
            f"segmentation: mean IoU (C) above every baseline in {MODELS} models",
            f"{int(above.sum())} of {len(above)} ({', '.join(above.index[above]) or 'none'}); "
            f"from {_points((wide['decomposition'] - best).min())} to "
            f"{_points((wide['decomposition'] - best).max())} above the best baseline",
            _verdict(above.sum() >= MODELS),
        ],
        [
            f"heat maps: mass in the mask at least {MASS:g} times its share of the area",
            f"{int((ratios['ratio'] >= MASS).sum())} of {len(ratios)} models; least "
            f"{least['ratio']:.2f} [{least['low']:.2f}, {least['high']:.2f}] ({least.name})",
            _verdict(bool((ratios["ratio"] >= MASS).all())),
        ],
    ]


def mean_iou(table: pd.DataFrame) -> pd.DataFrame:
    """Mean IoU under protocol C: model by method."""
    chosen = table[table["protocol"] == "C"]
    return chosen.pivot_table(index="model", columns="method", values="miou", sort=False)


def mass_ratios(images: pd.DataFrame) -> pd.DataFrame:
    """Mean mass of the decomposition's maps in the mask over the mean area, by model.

    With the ends of an interval by drawing images.
    """
    chosen = images[(images["method"] == "decomposition") & (images["protocol"] == "C")]
    rows, generator = {}, np.random.default_rng(0)
    for model, part in chosen.dropna(subset=["mass"]).groupby("model", sort=False):
        values = part[["mass", "area"]].to_numpy()
        drawn = values[generator.integers(0, len(values), (_DRAWS, len(values)))].mean(axis=1)
        low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
        mass, area = values.mean(axis=0)
        rows[model] = {"mass": mass, "area": area, "ratio": mass / area, "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, orient="index")


def spurious_bars(table: pd.DataFrame) -> list[Row]:
    """Rows of the removal of a cue: bar, what was measured, verdict."""
    worst, average = gains(table, "worst"), gains(table, "test")
    low, high = mean_interval(worst["ablated"].to_numpy())
    a_low, a_high = mean_interval(average["ablated"].to_numpy())
    r_low, r_high = mean_interval(worst["random"].to_numpy())
    return [
        [
            f"spurious cue: worst group {100 * GAIN:.0f} points better on average over models",
            f"{_points(worst['ablated'].mean())} [{_points(low)}, {_points(high)}]",
            _verdict(worst["ablated"].mean() >= GAIN),
        ],
        [
            f"spurious cue: no more than {100 * COST:.0f} point of average accuracy lost",
            f"{_points(average['ablated'].mean())} [{_points(a_low)}, {_points(a_high)}], least "
            f"{_points(average['ablated'].min())} ({average['ablated'].idxmin()})",
            _verdict(average["ablated"].mean() >= -COST),
        ],
        [
            "spurious cue: random components do not do this",
            f"{_points(worst['random'].mean())} [{_points(r_low)}, {_points(r_high)}]",
            _verdict(worst["random"].mean() < GAIN),
        ],
    ]


def gains(table: pd.DataFrame, group: str, column: str = "gain") -> pd.DataFrame:
    """Gain of a group's accuracy: model by method."""
    rows = table[table["group"] == group]
    return rows.pivot_table(index="model", columns="method", values=column, sort=False)


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def _verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def _retrieval(table: pd.DataFrame, query: str, write: TableWriter) -> str:
    wide, low, high = (precisions(table, query, name) for name in ("precision", "low", "high"))
    methods = [m for m in wide.columns if m not in ("components", "representation")]
    head = ["components", "whole", *(m for m in methods)]
    rows = []
    for key in wide.index:
        cells = [
            f"{wide.loc[key, name]:.3f} [{low.loc[key, name]:.3f}, {high.loc[key, name]:.3f}]"
            for name in ("components", "representation")
        ]
        others = ["" if pd.isna(v) else f"{v:.3f}" for v in wide.loc[key, methods]]
        rows.append([*key, *cells, *others])
    text = (
        f"### Retrieval by {query}\n\n"
        "Precision@10 on the property asked for. *published*: the sum of the highest scores; "
        "*random*: as many random components, compared in the same way; *subspace*: the whole "
        "representation in the subspace of the property's texts.\n\n"
    )
    if query == "phrase":
        text += (
            "A phrase is the sum of two texts, one of the property asked for and one of another "
            "(`red` + `star`, asked for the colour). It was added after retrieval by text had "
            "shown that nothing is left to gain there.\n\n"
        )
    return text + write(["model", "property", *head], rows)


def _leakage(table: pd.DataFrame, write: TableWriter) -> str:
    wide = leakage(table)
    rows = [[*key, *(f"{value:.3f}" for value in wide.loc[key])] for key in wide.index]
    text = (
        "### Leakage of retrieval by image\n\n"
        "Precision@10 on the other main properties, mean over these: what is found should not "
        "follow them.\n\n"
    )
    return text + write(["model", "property asked", *wide.columns], rows)


def _segmentation(table: pd.DataFrame, images: pd.DataFrame, write: TableWriter) -> str:
    wide, ratios = mean_iou(table), mass_ratios(images)
    chosen = table[(table["protocol"] == "C") & (table["method"] == "decomposition")]
    ends = chosen.set_index("model")[["low", "high"]]
    others = [name for name in wide.columns if name != "decomposition"]
    rows = []
    for model in wide.index:
        own = f"{wide.loc[model, 'decomposition']:.3f}"
        own += f" [{ends.loc[model, 'low']:.3f}, {ends.loc[model, 'high']:.3f}]"
        cells = ["" if pd.isna(v) else f"{v:.3f}" for v in wide.loc[model, others]]
        mass = ""
        if model in ratios.index:
            one = ratios.loc[model]
            mass = f"{one['ratio']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
        rows.append([model, own, *cells, mass])
    text = (
        "### Segmentation and heat maps\n\n"
        "Mean IoU under protocol C, and the mass of the map in the mask over the mask's share of "
        "the area.\n\n"
    )
    return text + write(["model", "decomposition", *others, "mass / area"], rows)


def _spurious(table: pd.DataFrame, write: TableWriter) -> str:
    worst, average = gains(table, "worst"), gains(table, "test")
    low, high = gains(table, "worst", "gain_low"), gains(table, "worst", "gain_high")
    before = gains(table, "worst", "accuracy")["full"]
    number = gains(table, "worst", "components")["ablated"]
    methods = [m for m in ("random", "early", "group_labels", "published") if m in worst]
    rows = []
    for model in worst.index:
        ends = f"[{_points(low.loc[model, 'ablated'])}, {_points(high.loc[model, 'ablated'])}]"
        rows.append(
            [
                model,
                f"{number[model]:.0f}",
                f"{before[model]:.3f}",
                f"{_points(worst.loc[model, 'ablated'])} {ends}",
                _points(average.loc[model, "ablated"]),
                *(_points(worst.loc[model, name]) for name in methods),
            ]
        )
    text = (
        "### Spurious cue\n\n"
        "Accuracy of the worst group with nothing ablated, and its gain, with intervals over "
        "redraws of the images; then the gain of the test accuracy, and the worst group's gain "
        "by the other ways.\n\n"
    )
    head = ["model", "components", "worst group", "gain", "average", *methods]
    return text + write(head, rows)


def _codes(table: pd.DataFrame, write: TableWriter) -> str:
    rows = []
    for model, part in table.groupby("model", sort=False):
        steps = part.sort_values("texts").to_dict("records")
        cells = [
            f"{step['explained']:.3f} [{step['explained_low']:.3f}, {step['explained_high']:.3f}]"
            for step in steps
        ]
        rows.append([model, steps[-1]["n"], *cells, f"{steps[-1]['reaching']:.2f}"])
    most = int(table["texts"].max())
    counts = ["1 text", *(f"{count} texts" for count in range(2, most + 1))]
    text = (
        "### Sparse concept codes\n\n"
        "Share of the squared length of an image's mapped representation, less its mean over "
        "images, that its first texts explain: mean over all images (a code ends where the next "
        "text would add less than 1 %), and the share of images whose code has all of them.\n\n"
    )
    return text + write(["model", "images", *counts, f"with all {most}"], rows)
