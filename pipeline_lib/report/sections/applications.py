"""Section on the applications, one part for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline_lib.report.blocks import (
    Block,
    Caption,
    Component,
    Field,
    Figure,
    Gallery,
    GalleryRow,
    Listing,
    Picture,
    Section,
)
from pipeline_lib.report.charts import as_percent, dot_rows
from pipeline_lib.report.collect import APPLICATIONS, Run
from pipeline_lib.report.findings import report_k
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.style import Panel, colour, draw_panel, series_colour
from pipeline_lib.report.words import listed, method_name, percent, plural, spaced, whole

TITLES = {
    "ablation": "Mean ablation",
    "retrieval": "Retrieval by one property",
    "heatmaps": "Token heat maps",
    "segmentation": "Zero-shot segmentation",
    "spurious": "Spurious cues",
}
_ABOUT = {
    "ablation": "How the accuracy falls when components are replaced by their mean over images.",
    "retrieval": "Images found by one property alone, with the components that carry it.",
    "heatmaps": "Where in the image a text or a class gets its direct contribution from.",
    "segmentation": "The heat maps, thresholded and held against the object’s mask.",
    "spurious": "Components that carry a cue which does not hold are replaced by their means.",
}
_AVERAGES = ("worst", "mean", "test", "train_weighted")
#: Rows of singly ablated components that the page lists for each model.
TOP_SINGLE = 5


def applications_section(run: Run, book: PictureBook) -> Section:
    """All applications; one that is switched off says so."""
    parts: dict[str, Callable[[], Sequence[Block]]] = {
        "ablation": lambda: [_curves(run), _single(run)],
        "retrieval": lambda: _retrieval(run, book),
        "heatmaps": lambda: _heatmaps(run, book),
        "segmentation": lambda: [_segmentation(run), _segmentation_table(run)],
        "spurious": lambda: [_groups(run), _averages(run)],
    }
    children = [
        Section(
            key=name,
            title=TITLES[name],
            about=_ABOUT[name],
            blocks=[] if name in run.not_run else list(parts[name]()),
            not_run=run.not_run.get(name, ""),
        )
        for name in APPLICATIONS
    ]
    return Section(
        key="applications",
        title="Applications",
        about="What the contributions are good for, each beside a baseline and a control.",
        children=children,
    )


def _dataset(run: Run, name: str) -> str:
    return str(run.config["applications"][name]["dataset"])


def _images_of(split: str | None) -> str:
    return "all images" if split is None else f"{split} images"


def _present(run: Run, table: pd.DataFrame) -> list[str]:
    found = set(table["model"])
    return [name for name in run.models if name in found]


# Mean ablation


def _curves(run: Run) -> Figure:
    table = run["ablation"]
    panels = [_curve_panel(table[table["model"] == name], name) for name in _present(run, table)]
    targets = [str(name) for name in dict.fromkeys(table["target"])]
    settings = run.config["applications"]["ablation"]
    band = f" averaged over {listed(targets)}, with their range" if len(targets) > 1 else ""
    return Figure(
        "ablation",
        "Accuracy while layers are ablated",
        Caption(
            f"Accuracy{band} as layers are ablated from the input on and from the output back; "
            "dotted: all MLPs, or all attention.",
            "The direct effect of each ablated component is replaced by its mean over "
            f"{_images_of(settings['reference_split'])}. Classifiers: "
            f"{_classifiers(run, table)}.",
            f"{plural(int(table['n'].max()), 'image')} of {_dataset(run, 'ablation')} "
            f"({_images_of(settings['split'])})",
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
        for place, (curve, words) in enumerate(
            (("from_input", "from the input"), ("from_output", "from the output"))
        ):
            steps = part[part["curve"] == curve]
            if steps.empty:
                continue
            found = steps.groupby("step")["accuracy"].agg(["mean", "min", "max"])
            x = found.index / max(1, found.index.max())
            shade = series_colour(place)
            axes.fill_between(x, found["min"], found["max"], color=shade, alpha=0.15, linewidth=0)
            axes.plot(
                x, found["mean"], color=shade, linestyle="-" if place == 0 else (0, (5, 1.5)),
                label=words,
            )  # fmt: skip
        for curve, words, side in (
            ("all_mlp", "all MLPs", "right"),
            ("all_attention", "all attention", "left"),
        ):
            level = part.loc[part["curve"] == curve, "accuracy"]
            if len(level):
                axes.axhline(
                    level.mean(), color=colour("muted"), linestyle=(0, (1, 1.6)), linewidth=1.1
                )
                axes.annotate(
                    words,
                    (0.01 if side == "left" else 0.99, level.mean()),
                    xytext=(0, 2),
                    textcoords="offset points",
                    ha=side,
                    fontsize=7.5,
                    color=colour("muted"),
                )
        axes.set_ylim(0, 1.02)
        axes.set_xlim(0, 1)
        axes.set_xlabel("layers ablated")
        as_percent(axes, "x")
        as_percent(axes, "y")
        axes.grid(axis="y")
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1), ncols=2, handlelength=1.8, borderaxespad=0,
            columnspacing=1.0, borderpad=0.2,
        )  # fmt: skip

    return draw_panel(draw, model, 3.0, 2.6)


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
    top["component"] = [Component(row.model, row.ablated) for row in top.itertuples()]
    fields = [
        Field("model", "model", number=False),
        Field("target", "task", number=False),
        Field("component", "component", number=False),
        Field("full", "full model", percent),
        Field("accuracy", "without it", percent),
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


# Retrieval


def _retrieval(run: Run, book: PictureBook) -> list[Block]:
    blocks: list[Block] = [_precision(run), _precision_table(run)]
    if len(run["retrieval_examples"]):
        blocks.append(_examples(run, book))
    return blocks


def _precision(run: Run) -> Figure:
    table = run["retrieval"]
    k = report_k(table)
    at_k = table[table["k"] == k]
    panels = []
    for query in [name for name in ("text", "image") if (at_k["query"] == name).any()]:
        for asked in (True, False):
            part = at_k[(at_k["query"] == query) & ((at_k["feature"] == at_k["measured"]) == asked)]
            if part.empty:
                continue
            wide = part.pivot_table(index="model", columns="method", values="precision", sort=False)
            wide = wide.reindex([name for name in run.models if name in wide.index])
            series = {str(name): wide[name].tolist() for name in wide}
            title = f"by {query}: " + ("the asked property" if asked else "other properties")
            rows = [str(name) for name in wide.index]
            draw = dot_rows(rows, series, f"precision at {k}", limits=(0.0, 1.0))
            panels.append(draw_panel(draw, title, 4.3, 1.4 + 0.3 * len(rows)))
    return Figure(
        "retrieval",
        "Precision on the asked property, and on the others",
        Caption(
            f"Share of the first {k} images that have the property asked for (higher is better), "
            "and that share another property of the query (nearer to chance is better).",
            "By text: mapped contributions of a feature’s top components against the text. By "
            "image: their unmapped contributions against the probe’s. Averaged over the features.",
            f"{plural(int(table['n'].max()), 'image')} of {_dataset(run, 'retrieval')}, "
            f"{plural(int(table['queries'].max()), 'query', 'queries')} for each feature",
        ),
        panels,
        at_k,
        run.files["retrieval"],
        columns=2,
    )


def _precision_table(run: Run) -> Listing:
    table = run["retrieval"]
    k = report_k(table)
    part = table[(table["feature"] == table["measured"]) & (table["k"] == k)]
    wide = part.pivot_table(
        index=["model", "query", "feature"], columns="method", values="precision", sort=False
    ).reset_index()
    methods = [str(name) for name in wide.columns if name not in ("model", "query", "feature")]
    fields = [
        Field("model", "model", number=False),
        Field("query", "by", number=False),
        Field("feature", "feature", number=False),
        *(Field(name, method_name(name), percent) for name in methods),
    ]
    return Listing(
        "retrieval-precision",
        f"Precision at {k} by feature",
        None,
        fields,
        wide,
        run.files["retrieval"],
    )


def _examples(run: Run, book: PictureBook) -> Gallery:
    table = run["retrieval_examples"].sort_values("rank", kind="stable")
    count = int(run.config["report"]["examples"])
    tabs = {name: _example_rows(table[table["model"] == name], book, count)
            for name in _present(run, table)}  # fmt: skip
    return Gallery(
        "retrieval-examples",
        "Images found",
        Caption(
            "The first images for one query of each feature, best first: ✓ has the asked property, "
            "✗ has not.",
            "Ranked over all images of the set; a probe image is left out of its own result.",
            plural(len(table), "retrieved image"),
        ),
        tabs,
        run.files["retrieval_examples"],
    )


def _example_rows(table: pd.DataFrame, book: PictureBook, count: int) -> list[GalleryRow]:
    rows = []
    for (query, feature, probe, method), part in table.groupby(
        ["query", "feature", "probe", "method"], sort=False
    ):
        dataset = str(part["dataset"].iloc[0])
        lead = Picture(book.image(dataset, str(probe)), "probe") if query == "image" else None
        pictures = [
            Picture(
                book.image(dataset, row.image_id),
                "",
                None if pd.isna(row.correct) else bool(row.correct),
            )
            for row in part.head(count).itertuples()
        ]
        title = f"{feature}: “{probe}”" if query == "text" else f"{feature} of this image"
        rows.append(GalleryRow(title, pictures, method_name(str(method)), lead))
    return rows


# Heat maps


def _heatmaps(run: Run, book: PictureBook) -> list[Block]:
    blocks: list[Block] = [_overlays(run, book)]
    if run["heatmaps"]["mass"].notna().any():
        blocks.append(_mass(run))
    return blocks


def _overlays(run: Run, book: PictureBook) -> Gallery:
    table = run["heatmaps"]
    folders = {path.split("/")[2]: path.rpartition("/")[0] for path in run.files["heatmaps"]}
    tabs = {}
    for model in _present(run, table):
        rows = []
        part = table[table["model"] == model]
        for (dataset, image), maps in part.groupby(["dataset", "image_id"], sort=False):
            key = book.image(str(dataset), str(image), large=True)
            lead = Picture(key, book.note(key))
            pictures = [
                Picture(
                    book.file(f"{folders[model]}/{row.file}", f"heat map for {row.direction}"),
                    row.direction
                    + ("" if pd.isna(row.mass) else f" · {percent(row.mass, 0)} on the object"),
                )
                for row in maps.itertuples()
            ]
            rows.append(GalleryRow("", pictures, "", lead))
        tabs[model] = rows
    return Gallery(
        "heatmaps",
        "Token heat maps",
        Caption(
            "Where the direct contribution to a text or a class comes from.",
            "Contribution of every source token, summed over the components, along the direction "
            "named below the picture; zero is the middle of the colour scale.",
            plural(len(table), "map"),
            "A token has seen the others: what is written from a place is not only about it.",
        ),
        tabs,
        run.files["heatmaps"],
        large=True,
    )


def _mass(run: Run) -> Figure:
    table = run["heatmaps"].dropna(subset=["mass", "area"])
    means = table.groupby("model", sort=False)[["mass", "area"]].mean()
    means = means.reindex([name for name in run.models if name in means.index])
    rows = [str(name) for name in means.index]
    series = {"decomposition": means["mass"].tolist(), "area": means["area"].tolist()}
    draw = dot_rows(rows, series, "share of the positive heat on the object", limits=(0.0, 1.0))
    return Figure(
        "heat-on-object",
        "Heat on the object",
        Caption(
            "Share of the positive heat that falls inside the object’s mask, and the share of the "
            "image that the mask covers.",
            "Mean over the maps shown above.",
            plural(len(table), "map"),
            "Few maps: see the segmentation for a measure over a whole set.",
        ),
        [draw_panel(draw, "", 5.2, 1.0 + 0.3 * len(rows))],
        table,
        run.files["heatmaps"],
        columns=1,
    )


# Segmentation


def _segmentation(run: Run) -> Figure:
    table = run["segmentation"]
    panels = []
    for protocol, part in table.groupby("protocol", sort=False):
        value = "miou" if part["miou"].notna().any() else "iou_object"
        words = "mean IoU" if value == "miou" else "IoU of the object"
        wide = part.pivot_table(index="model", columns="method", values=value, sort=False)
        wide = wide.reindex([name for name in run.models if name in wide.index])
        series = {str(name): wide[name].tolist() for name in wide}
        rows = [str(name) for name in wide.index]
        draw = dot_rows(rows, series, words, limits=(0.0, 1.0))
        panels.append(draw_panel(draw, f"protocol {protocol}", 4.3, 1.4 + 0.3 * len(rows)))
    return Figure(
        "segmentation",
        "Overlap with the object’s mask",
        Caption(
            "Overlap between the thresholded map and the object’s mask, beside the baselines of "
            "the same run.",
            "C (Chefer et al.): threshold at the map’s mean, mean of foreground and background "
            "IoU pooled over the set. V (Balasubramanian et al.): IoU of the foreground only.",
            plural(int(table["n"].max()), "image"),
        ),
        panels,
        table,
        run.files["segmentation"],
        columns=2,
    )


def _segmentation_table(run: Run) -> Listing:
    fields = [
        Field("model", "model", number=False),
        Field("protocol", "protocol", number=False),
        Field("method", "method", method_name, number=False),
        Field("pixel_accuracy", "pixel accuracy", percent),
        Field("iou_object", "IoU object", percent),
        Field("iou_background", "IoU background", percent),
        Field("miou", "mIoU", percent),
        Field("map", "average precision", percent),
        Field("n", "images", whole),
    ]
    return Listing(
        "segmentation-scores",
        "All segmentation scores",
        None,
        fields,
        run["segmentation"],
        run.files["segmentation"],
    )


# Spurious cues


def _groups(run: Run) -> Figure:
    table = run["spurious"]
    panels = [_group_panel(table[table["model"] == name], name) for name in _present(run, table)]
    settings = run.config["applications"]["spurious"]
    draws = table.loc[table["method"] == "random", "draw"].nunique()
    k = int(table.loc[table["method"] == "ablated", "components"].max())
    return Figure(
        "spurious",
        "Accuracy by group before and after",
        Caption(
            "Accuracy of each group for the full model (open) and after ablation (filled); grey: "
            f"range and mean of {plural(draws, 'draw')} of as many random components.",
            f"The {plural(k, 'component')} with the largest score for the spurious words less that "
            f"for the core words, chosen on the {settings['select_split']} images, replaced by "
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
            here = part[part["group"] == group].groupby("method")["accuracy"]
            value, low, high = here.mean(), here.min(), here.max()
            if "random" in value:
                axes.hlines(place, low["random"], high["random"], color=colour("line"), linewidth=6)
                axes.plot(
                    value["random"], place, marker="|", markersize=8, markeredgewidth=1.4,
                    color=colour("faint"),
                )  # fmt: skip
            if "ablated" in value and "full" in value:
                axes.hlines(
                    place, value["full"], value["ablated"], color=colour("c1"), linewidth=1.4
                )
            if "full" in value:
                axes.plot(
                    value["full"], place, marker="o", markersize=7, color=colour("surface"),
                    markeredgecolor=colour("c1"), markeredgewidth=1.5,
                )  # fmt: skip
            if "ablated" in value:
                axes.plot(value["ablated"], place, marker="o", markersize=7.5, color=colour("c1"))
        if len(rows) > len(groups):
            axes.axhline(len(groups) - 0.5, color=colour("line"), linewidth=0.8)
        names = {"worst": "worst group", "test": "all test images"}
        axes.set_yticks(range(len(rows)), [names.get(row, row) for row in rows])
        axes.invert_yaxis()
        axes.margins(y=0.08)
        low = float(part["accuracy"].min())
        axes.set_xlim(max(0.0, np.floor(low * 10) / 10 - 0.05), 1.02)
        as_percent(axes)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)

    return draw_panel(draw, model, 3.0, 1.0 + 0.26 * len(rows))


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
