"""Retrieval by one property: precision, leakage to other properties, and images found."""

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
from pipeline_lib.report.charts import method_rows
from pipeline_lib.report.collect import Run
from pipeline_lib.report.findings import by_neighbours, is_asked, report_k, with_published
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.style import WIDEST, draw_panel
from pipeline_lib.report.words import listed, method_name, percent, plural, whole
from pipeline_lib.retrieval_truth import NEIGHBOURS

_QUERIES = ("text", "phrase", "image")

#: Methods whose images are shown side by side.
_SHOWN = ("components", "representation")


def retrieval_blocks(run: Run, book: PictureBook) -> list[Block]:
    """Precision, its table, and examples where there are any."""
    blocks: list[Block] = [_precision(run), _precision_table(run)]
    if len(run["retrieval_examples"]):
        blocks.append(_examples(run, book))
    return blocks


def _precision(run: Run) -> Figure:
    table = with_published(run["retrieval"])
    k = report_k(table)
    at_k = table[table["k"] == k]
    methods = [str(name) for name in at_k["method"].unique()]
    panels = []
    for query in [name for name in _QUERIES if (at_k["query"] == name).any()]:
        for asked in (True, False):
            part = at_k[(at_k["query"] == query) & (is_asked(at_k) == asked)]
            if part.empty:
                continue
            right = "near labels" if by_neighbours(part).all() else "the asked property"
            title = f"by {query}: {right if asked else 'other properties'}"
            draw = method_rows(part, run.models, "precision", f"precision at {k}", methods)
            panels.append(draw_panel(draw, title, WIDEST, 1.6 + 0.5 * part["model"].nunique()))
    return Figure(
        "retrieval",
        "Precision on the asked property, and on the others",
        Caption(
            f"Share of the first {k} images that have the property asked for (higher is better), "
            "and that share another property of the query (nearer to chance is better).",
            "By text: mapped contributions of a feature’s top components against the text; by "
            "phrase: against one that names a second property too. By image: their unmapped "
            "contributions against the probe’s. As published: components summed by their score, "
            "the best number of them, also where this is the way that was chosen. Means over the "
            "features, with those of their 95\u202f% intervals over queries; grey tick: chance.",
            f"{plural(int(table['n'].max()), 'image')} of "
            f"{run.config['applications']['retrieval']['dataset']}; {_query_counts(at_k)}",
            " ".join([*_truth(at_k), *_unchosen(run["retrieval_choices"])]),
        ),
        panels,
        at_k,
        run.files["retrieval"],
        columns=2,
    )


def _query_counts(table: pd.DataFrame) -> str:
    """`queries for each feature: 3 to 8 by text and 50 by image`."""
    asked, counts = table[is_asked(table)], []
    for query in _QUERIES:
        found = asked.loc[asked["query"] == query, "queries"]
        if len(found):
            fewest, most = int(found.min()), int(found.max())
            number = whole(most) if fewest == most else f"{whole(fewest)} to {whole(most)}"
            counts.append(f"{number} by {query}")
    return f"queries for each feature: {listed(counts)}"


def _truth(table: pd.DataFrame) -> list[str]:
    """What counts as right, where it is not a value of the property asked for."""
    if not by_neighbours(table).any():
        return []
    return [
        f"By image, right is an image whose label is among the {NEIGHBOURS} nearest to the probe’s "
        "by the text embeddings of the labels, whichever property is asked for: the images have "
        "no values of the properties, and each has a label of its own."
    ]


def _unchosen(choices: pd.DataFrame) -> list[str]:
    """That a way was not chosen but taken, for the queries where it was so."""
    taken = choices[choices["queries"] == 0]
    if taken.empty:
        return []
    which = ""
    if len(taken) < choices["chosen"].sum():
        of = [f"{feature} by {query}" for feature, query in
              taken[["feature", "query"]].drop_duplicates().itertuples(index=False)]  # fmt: skip
        which = f" for {listed(of)}"
    numbers = listed(whole(int(count)) for count in sorted(taken["components"].unique()))
    return [
        f"Nothing to choose a way on{which}: the images have no values of these features; the "
        f"published way, {numbers} components."
    ]


def _precision_table(run: Run) -> Listing:
    table = with_published(run["retrieval"])
    k = report_k(table)
    part = table[is_asked(table) & (table["k"] == k)]
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
    table = table[table["method"].isin(_SHOWN)]
    count = int(run.config["report"]["examples"])
    tabs = {name: _example_rows(table[table["model"] == name], book, count)
            for name in run.models_in(table)}  # fmt: skip
    return Gallery(
        "retrieval-examples",
        "Images found",
        Caption(
            "The first images for one query of each feature, best first: ✓ has the asked property, "
            "✗ has not.",
            "Ranked over all images of the set; a probe image is left out of its own result.",
            plural(sum(len(rows) for rows in tabs.values()), "query", "queries"),
            "One query of each feature, the first; not chosen by how well it went.",
        ),
        tabs,
        run.files["retrieval_examples"],
        columns=len(_SHOWN),
    )


def _example_rows(table: pd.DataFrame, book: PictureBook, count: int) -> list[GalleryRow]:
    """One query of each feature; the methods one below the other."""
    rows = []
    for (query, feature), asked in table.groupby(["query", "feature"], sort=False):
        probe = str(asked["probe"].iloc[0])
        asked = asked[asked["probe"] == probe]
        dataset = str(asked["dataset"].iloc[0])
        lead = Picture(book.image(dataset, probe), "probe") if query == "image" else None
        title = f"{feature}: “{probe}”" if query == "text" else f"{feature} of this image"
        for method in _SHOWN:
            part = asked[asked["method"] == method]
            pictures = [
                Picture(book.image(dataset, row.image_id), "", _verdict(row.correct))
                for row in part.head(count - (lead is not None)).itertuples()
            ]
            rows.append(GalleryRow(title, pictures, method_name(method), lead))
    return rows


def _verdict(correct: object) -> bool | None:
    return None if pd.isna(correct) else bool(correct)
