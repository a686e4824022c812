"""What stands beside a finding on the first screen: the pictures or the bars that show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from pipeline_lib.report.blocks import Component, Picture
from pipeline_lib.report.charts import as_percent
from pipeline_lib.report.collect import Run
from pipeline_lib.report.findings import leading_component
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.style import Panel, colour, draw_panel
from pipeline_lib.report.words import method_name, percent

#: Pictures beside a finding.
_COUNT = 4


@dataclass(frozen=True)
class Exhibit:
    """Token maps of a component, pictures, or a drawing; `words` say which."""

    words: str
    component: Component | None = None
    pictures: tuple[Picture, ...] = ()
    panel: Panel | None = None


def exhibit_of(section: str, run: Run, book: PictureBook) -> Exhibit | None:
    """What shows the finding of a section; None where there is nothing to show."""
    make = _EXHIBITS.get(section)
    return make(run, book) if make else None


def _scores(run: Run, book: PictureBook) -> Exhibit | None:
    top = leading_component(run)
    if top is None:
        return None
    known = run["token_maps"]
    if ((known["model"] == top["model"]) & (known["component"] == top["component"])).any():
        words = "Red: where on its top images its first text comes from"
        return Exhibit(words, Component(top["model"], top["id"]))
    return None


def _spurious(run: Run, book: PictureBook) -> Exhibit:
    table = run["spurious_summary"]
    worst = table[(table["group"] == "worst") & table["method"].isin(["full", "ablated", "random"])]
    means = worst.groupby("method")["accuracy"].mean().reindex(["full", "ablated", "random"])
    tones = [colour("faint"), colour("c1"), colour("c2")]

    def draw(axes: Axes) -> None:
        places = np.arange(len(means))
        axes.barh(places, means, 0.66, color=tones)
        for place, value in enumerate(means):
            if not np.isnan(value):
                words = percent(float(value), 0)
                axes.text(value + 0.015, place, words, va="center", fontsize=9)
        axes.set_yticks(places, [method_name(str(name)) for name in means.index])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.0)
        as_percent(axes)
        axes.spines["left"].set_visible(False)

    return Exhibit("Accuracy of the worst group", panel=draw_panel(draw, "", 3.1, 1.25))


def _retrieval(run: Run, book: PictureBook) -> Exhibit | None:
    table = run["retrieval_examples"]
    table = table[(table["method"] == "components") & (table["query"] == "image")]
    if table.empty:
        return None
    first = table.iloc[0]
    same = (table[["model", "feature", "probe"]] == first[["model", "feature", "probe"]]).all(
        axis=1
    )
    found = table[same].sort_values("rank", kind="stable").head(_COUNT - 1)
    pictures = [Picture(book.image(first["dataset"], first["probe"]), "asked")]
    for row in found.itertuples():
        right = None if pd.isna(row.correct) else bool(row.correct)
        pictures.append(Picture(book.image(row.dataset, row.image_id), "", right))
    words = f"One query for {first['feature']} to {first['model']}, and the first images found"
    return Exhibit(words, pictures=tuple(pictures))


def _segmentation(run: Run, book: PictureBook) -> Exhibit | None:
    table = run["segmentation_examples"]
    folders = {p.split("/")[2]: p.rpartition("/")[0] for p in run.files["segmentation_examples"]}
    best = table[table["place"] == "median"].head(2)
    pictures = tuple(
        Picture(book.file(f"{folders[row.model]}/{row.file}", f"median image of {row.model}"))
        for row in best.itertuples()
    )
    return Exhibit("The median image", pictures=pictures) if pictures else None


_EXHIBITS: dict[str, Callable[[Run, PictureBook], Exhibit | None]] = {
    "scores": _scores,
    "spurious": _spurious,
    "retrieval": _retrieval,
    "segmentation": _segmentation,
}
