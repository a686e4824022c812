"""Token heat maps, and the segmentation made from them."""

from __future__ import annotations

import pandas as pd

from pipeline_lib.report.blocks import (
    Block,
    Caption,
    Field,
    Figure,
    Gallery,
    GalleryRow,
    Listing,
    Picture,
)
from pipeline_lib.report.charts import dot_rows, method_rows
from pipeline_lib.report.collect import Run
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.style import WIDEST, draw_panel
from pipeline_lib.report.words import method_name, percent, plural, whole


def heatmap_blocks(run: Run, book: PictureBook) -> list[Block]:
    """Overlays, and how much of the heat falls on the object where that is known."""
    blocks: list[Block] = [_overlays(run, book)]
    if run["heatmaps"]["mass"].notna().any():
        blocks.append(_mass(run))
    return blocks


def _overlays(run: Run, book: PictureBook) -> Gallery:
    table = run["heatmaps"]
    folders = {path.split("/")[2]: path.rpartition("/")[0] for path in run.files["heatmaps"]}
    tabs = {}
    for model in run.models_in(table):
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
        [draw_panel(draw, "", WIDEST, 1.0 + 0.3 * len(rows))],
        table,
        run.files["heatmaps"],
        columns=1,
    )


def segmentation_blocks(run: Run, book: PictureBook) -> list[Block]:
    """Overlap with the masks under each protocol, the best and worst images, and all scores."""
    return [_segmentation(run), _segmentation_examples(run, book), _segmentation_table(run)]


def _segmentation(run: Run) -> Figure:
    table = run["segmentation"]
    methods = [str(name) for name in table["method"].unique()]
    panels = []
    for protocol, part in table.groupby("protocol", sort=False):
        value = "miou" if part["miou"].notna().any() else "iou_object"
        words = "mean IoU" if value == "miou" else "IoU of the object"
        draw = method_rows(part, run.models, value, words, methods)
        height = 1.6 + 0.5 * part["model"].nunique()
        panels.append(draw_panel(draw, f"protocol {protocol}", WIDEST, height))
    return Figure(
        "segmentation",
        "Overlap with the object’s mask",
        Caption(
            "Overlap between the thresholded map and the object’s mask, beside the baselines of "
            "the same run.",
            "C (Chefer et al.): threshold at the map’s mean, mean of foreground and background "
            "IoU pooled over the set. V (Balasubramanian et al.): IoU of the foreground only. With "
            "95\u202f% intervals over images.",
            plural(int(table["n"].max()), "image"),
        ),
        panels,
        table,
        run.files["segmentation"],
        columns=2,
    )


def _segmentation_examples(run: Run, book: PictureBook) -> Gallery:
    table = run["segmentation_examples"]
    folders = {p.split("/")[2]: p.rpartition("/")[0] for p in run.files["segmentation_examples"]}
    rows = []
    for model in run.models_in(table):
        part = table[table["model"] == model]
        pictures = [
            Picture(
                book.file(f"{folders[model]}/{row.file}", f"{row.place} image of {model}"),
                f"{row.place}: IoU {percent(row.iou_object, 0)}",
            )
            for row in part.itertuples()
        ]
        rows.append(GalleryRow(model, pictures))
    asked = run.config["applications"]["segmentation"]
    return Gallery(
        "segmentation-examples",
        "Best, median and worst image",
        Caption(
            "The token map of the decomposition over the image, with the outline of the object’s "
            "mask.",
            f"The images of the highest, the middle and the lowest IoU of the object under "
            f"protocol {asked['protocols'][0]}; red: evidence for the object, blue: against.",
            plural(table["image_id"].nunique(), "image"),
            "The extremes of a set say what can happen, not what is usual.",
        ),
        {"": rows},
        run.files["segmentation_examples"],
        large=True,
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
