"""Sections on what went in: the manifests, and the texts and embeddings."""

from __future__ import annotations

import numpy as np
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
    Section,
)
from pipeline_lib.report.charts import matrix
from pipeline_lib.report.collect import Run
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.report.style import draw_panel
from pipeline_lib.report.words import listed, plural, whole

#: Rejected files that the page lists; the table beside it has all.
MAX_REJECTED = 200
#: Splits in the order in which they are used.
_SPLITS = ("train", "val", "test")
#: Values of a label or group that are named in a cell.
MAX_NAMED = 8


def manifest_section(run: Run, book: PictureBook) -> Section:
    """What the data sets hold, some of their images, and the files that were rejected."""
    tables = run["manifest"]
    active = tables[tables["active"].astype(bool)]
    blocks: list[Block] = [_datasets(run, active), _samples(run, active, book)]
    if active["group"].notna().any():
        blocks.append(_groups(run, active))
    blocks.append(_rejected(run))
    return Section(
        key="manifest",
        title="Manifest",
        about="The images that went in: one row for each, with a stable id and a hash of its file.",
        blocks=blocks,
    )


def _datasets(run: Run, active: pd.DataFrame) -> Listing:
    rows = []
    for name in run.datasets:
        part = active[active["dataset"] == name]
        splits = part["split"].value_counts()
        splits = splits.reindex(sorted(splits.index, key=_place_of))
        rows.append(
            {
                "dataset": name,
                "source": run.config["datasets"][name]["source"],
                "images": len(part),
                "gone": int((run["manifest"]["dataset"] == name).sum()) - len(part),
                "rejected": int((run["rejected"]["dataset"] == name).sum()),
                "size": _pixels(part),
                "splits": ", ".join(f"{split} {whole(n)}" for split, n in splits.items()) or "–",
                "labels": _values(part["label"]),
                "groups": _values(part["group"]),
            }
        )
    fields = [
        Field("dataset", "data set", number=False),
        Field("source", "source", number=False),
        Field("images", "images", whole),
        Field("gone", "left the set", whole),
        Field("rejected", "rejected", whole),
        Field("size", "pixels", number=False),
        Field("splits", "splits", number=False),
        Field("labels", "labels", number=False),
        Field("groups", "groups", number=False),
    ]
    return Listing("datasets", "Data sets", None, fields, pd.DataFrame(rows), run.files["manifest"])


def _place_of(split: str) -> tuple[int, str]:
    """Sorts splits in the order in which they are used, others last."""
    return (_SPLITS.index(split) if split in _SPLITS else len(_SPLITS), split)


def _pixels(part: pd.DataFrame) -> str:
    sizes = part[["width", "height"]].drop_duplicates()
    if len(sizes) == 1:
        return f"{sizes['width'].iloc[0]} × {sizes['height'].iloc[0]}"
    low, high = part[["width", "height"]].min(axis=1).min(), part[["width", "height"]].max().max()
    return f"{low} to {high} a side" if len(part) else "–"


def _values(column: pd.Series) -> str:
    names = sorted(str(value) for value in column.dropna().unique())
    if len(names) <= MAX_NAMED:
        return ", ".join(names) or "–"
    return f"{whole(len(names))} ({', '.join(names[:3])} …)"


def _samples(run: Run, active: pd.DataFrame, book: PictureBook) -> Gallery:
    count = 2 * int(run.config["report"]["examples"])
    tabs = {}
    for name in run.datasets:
        part = active[active["dataset"] == name]
        places = np.unique(np.linspace(0, len(part) - 1, min(count, len(part))).astype(int))
        pictures = [Picture(book.image(name, part["image_id"].iloc[i])) for i in places]
        tabs[name] = [GalleryRow("", pictures)]
    return Gallery(
        "samples",
        "Some of the images",
        Caption(
            "Images of each data set.",
            "Taken at even steps through the manifest, not chosen. Pointing at one shows its "
            "caption or label.",
            listed(
                plural(len(rows[0].pictures), f"image of {name}", f"images of {name}")
                for name, rows in tabs.items()
            ),
        ),
        tabs,
    )


def _groups(run: Run, active: pd.DataFrame) -> Listing:
    grouped = active.dropna(subset=["group"]).assign(split=lambda t: t["split"].fillna("none"))
    counts = grouped.groupby(["dataset", "group", "split"]).size().unstack(fill_value=0)
    order = sorted(counts.columns, key=_place_of)
    counts = counts[order]
    fields = [Field("dataset", "data set", number=False), Field("group", "group", number=False)]
    for split in order:
        share = counts[split] / counts[split].groupby("dataset").transform("sum").clip(lower=1)
        counts[split] = [
            f"{whole(n)} ({100 * part:.0f}\u202f%)"
            for n, part in zip(counts[split], share, strict=True)
        ]
        fields.append(Field(split, split))
    return Listing(
        "groups",
        "Groups in each split",
        Caption(
            "Images of each group, and their share of the split.",
            "Counted in the manifest.",
            plural(len(grouped), "image"),
            "Where the shares differ between train and test, a model may have learned a cue that "
            "no longer holds.",
        ),
        fields,
        counts.reset_index(),
        run.files["manifest"],
    )


def _rejected(run: Run) -> Listing:
    table = run["rejected"]
    shown = table.head(MAX_REJECTED)
    fields = [
        Field("dataset", "data set", number=False),
        Field("path", "file", number=False),
        Field("reason", "reason", number=False),
    ]
    more = f" The first {MAX_REJECTED} are listed." if len(table) > MAX_REJECTED else ""
    return Listing(
        "rejected",
        "Rejected files",
        Caption(
            "Files that could not be used.",
            f"Each file is opened and decoded when the manifest is made.{more}",
            plural(len(table), "file"),
        ),
        fields,
        shown,
        run.files["rejected"],
        empty="No file was rejected.",
    )


def features_section(run: Run) -> Section:
    """The concept words and how near they lie to each other in each CLIP space."""
    texts = run["text_features"]
    concepts = texts[texts["use"] == "concept"] if len(texts) else texts
    blocks: list[Block] = []
    if len(concepts):
        blocks = [_concepts(run, concepts), _similarity(run, concepts)]
    return Section(
        key="features",
        title="Features",
        about="Embeddings of the images and of all texts in the space of the reference CLIP, and "
        "of the texts in that of each CLIP model.",
        blocks=blocks,
        not_run=run.not_run.get("features", ""),
    )


def _concepts(run: Run, concepts: pd.DataFrame) -> Listing:
    one = concepts.drop_duplicates(["feature", "text"])
    rows = one.groupby("feature", sort=False)["text"].agg([len, ", ".join]).reset_index()
    rows.columns = ["feature", "words", "list"]
    fields = [
        Field("feature", "feature", number=False),
        Field("words", "words", whole),
        Field("list", "descriptors", number=False),
    ]
    return Listing(
        "concepts",
        "Features and their descriptors",
        None,
        fields,
        rows,
        run.files["text_features"],
    )


def _similarity(run: Run, concepts: pd.DataFrame) -> Figure:
    panels, rows = [], []
    for space, part in concepts.groupby("space", sort=False):
        vectors = np.stack(part["embedding"].to_list()).astype(np.float64)
        cosine = vectors @ vectors.T
        features = list(dict.fromkeys(part["feature"]))
        panels.append(draw_panel(matrix(cosine, part["feature"].tolist()), str(space), 3.5, 2.9))
        rows += _mean_cosines(str(space), cosine, part["feature"].to_numpy(), features)
    return Figure(
        "text-similarity",
        "How near the descriptors lie to each other",
        Caption(
            "Cosine between the embeddings of all descriptors, grouped by feature.",
            "Each descriptor is averaged over the prompt templates and normalised."
            if run.config.get("templates")
            else "Each descriptor is embedded as it stands and normalised.",
            plural(concepts["text"].nunique(), "descriptor"),
            "Features whose words are hardly nearer to each other than to the words of another "
            "feature cannot be told apart well by any component.",
        ),
        panels,
        pd.DataFrame(rows),
        run.files["text_features"],
    )


def _mean_cosines(
    space: str, cosine: np.ndarray, feature: np.ndarray, features: list[str]
) -> list[dict[str, object]]:
    off_diagonal = ~np.eye(len(cosine), dtype=bool)
    return [
        {
            "space": space,
            "feature": one,
            "other_feature": other,
            "mean_cosine": _mean(cosine, off_diagonal & np.outer(feature == one, feature == other)),
        }
        for one in features
        for other in features
    ]


def _mean(values: np.ndarray, where: np.ndarray) -> float:
    return float(values[where].mean()) if where.any() else float("nan")
