"""Sparse concept codes: images as short lists of texts, and the components that carry each text."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pipeline_lib.report.blocks import (
    Block,
    Caption,
    Component,
    Figure,
    Line,
    Picture,
    Reading,
    Readings,
)
from pipeline_lib.report.charts import as_percent, legend_above
from pipeline_lib.report.collect import Run
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.style import LINES, WIDEST, draw_panel, series_colour
from pipeline_lib.report.words import images_of, plural

#: Share of a text's product with an image above which the shares of components are not told.
MOST = 2.0


def codes_blocks(run: Run, book: PictureBook) -> list[Block]:
    """Some images with their codes, and how much of an image a code explains."""
    return [_readings(run, book), _explained(run)]


def _readings(run: Run, book: PictureBook) -> Readings:
    codes, carriers = run["codes"], run["code_carriers"]
    count = int(run.config["report"]["examples"])
    tabs = {}
    for model in run.models_in(carriers):
        own = carriers[carriers["model"] == model].sort_values("order", kind="stable")
        lists = codes[codes["model"] == model].sort_values("rank", kind="stable")
        ids = list(dict.fromkeys(own["image_id"]))[:count]
        tabs[model] = [
            _reading(model, lists[lists["image_id"] == i], own[own["image_id"] == i], book)
            for i in ids
        ]
    return Readings(
        "concept-codes",
        "Images read as a few texts",
        Caption(
            "Each image as a short list of texts with weights, and the components that carry most "
            "of each text in this image.",
            "The mapped representation less its mean over images, approximated by texts of the "
            "pool with weights above zero (matching pursuit). A component’s share is that of the "
            "product with the text; where it is above 100\u202f%, others work against it. None is "
            "named where what the components say nearly cancels, so that shares mean nothing.",
            f"{plural(max(map(len, tabs.values()), default=0), 'image')} for each model",
            "A text is the nearest of the pool: what the pool cannot say is said by what it has.",
        ),
        tabs,
        [*run.files["codes"], *run.files["code_carriers"]],
    )


def _reading(model: str, texts: pd.DataFrame, carriers: pd.DataFrame, book: PictureBook) -> Reading:
    dataset, image = str(texts["dataset"].iloc[0]), str(texts["image_id"].iloc[0])
    key = book.image(dataset, image)
    most = float(texts["weight"].max())
    lines = [
        Line(row.text, row.category, row.weight / most, _parts(model, carriers, row.rank))
        for row in texts.itertuples()
    ]
    return Reading(Picture(key, book.note(key)), lines, float(texts["explained"].max()))


def _parts(model: str, carriers: pd.DataFrame, rank: int) -> list[tuple[Component, float]]:
    """Components that carry a text, with their shares; none where these nearly cancel."""
    own = carriers[carriers["rank"] == rank]
    if own.empty or own["share"].abs().max() > MOST or own["share"].iloc[0] < 0:
        return []
    return [(Component(model, part.id), part.share) for part in own.itertuples()]


def _explained(run: Run) -> Figure:
    data = run["code_summary"]
    names = run.models_in(data)
    asked = run.config["applications"]["codes"]

    def draw(axes: Axes) -> None:
        for place, name in enumerate(names):
            part = data[data["model"] == name]
            tone = series_colour(place)
            line = LINES[place % len(LINES)]
            axes.plot(part["texts"], part["explained"], color=tone, linestyle=line, label=name)
            low, high = part["explained_low"], part["explained_high"]
            axes.fill_between(part["texts"], low, high, color=tone, alpha=0.2, linewidth=0)
        axes.set_ylim(0, 1)
        axes.set_xlabel("texts of the image")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        as_percent(axes, "y")
        axes.grid(axis="y")
        legend_above(axes, columns=3)

    return Figure(
        "codes",
        "How much of an image its texts explain",
        Caption(
            "Share of the squared length of an image’s mapped representation that its first texts "
            "explain: mean over images, with 95\u202f% intervals.",
            "Over all images: a code ends where the next text would add less than 1\u202f%, and "
            "then explains no more.",
            f"{plural(int(data['n'].max()), 'image')} of {asked['dataset']} "
            f"({images_of(asked['split'])})",
        ),
        [draw_panel(draw, "", WIDEST, 3.0)],
        data,
        run.files["code_summary"],
        columns=1,
    )
