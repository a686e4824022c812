"""The page docs/photographs.md, from the tables of a run of config/photos.yaml.

VIT_ATLAS_PHOTOS=folder snakemake --configfile config/photos.yaml
python -m benchmarks.photographs results/photos --docs docs/photographs.md
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pandas as pd

from pipeline_lib.artifacts import read_table

#: Model, and data sets with labels and with masks, in that configuration.
NAMES = ("deit-tiny", "imagenet", "coco")
#: Layers ablated so far that the page shows, by curve; of the others only the last.
SHOWN = {"from_input": (0, 1, 9, 17, 19, 21, 23, 25), "from_output": (2, 4, 6, 8, 12, 25)}
#: Components that the page shows of those ablated alone: the ones that cost most.
COSTLY = 3


def page(root: Path, made: str, names: tuple[str, str, str] = NAMES) -> str:
    """The whole page; `made` says when and on what the run was made."""
    model, images, masks = names
    uses = root / "applications"
    parts = [
        "# Real photographs",
        "DeiT-tiny's published ImageNet-1k weights over one photograph of each ImageNet class, and "
        "over COCO\nphotographs with masks. No CLIP image encoder is needed: the map goes to the "
        "real CLIP *text* embeddings\nof the images' labels. The data are not part of the "
        "repository; name their folder:",
        "```bash\nVIT_ATLAS_PHOTOS=folder snakemake --configfile config/photos.yaml\n"
        "python -m benchmarks.photographs results/photos --docs docs/photographs.md\n```",
        made + _times(read_table("summary", root / "summary.parquet")),
        _exactness(read_table("exactness", root / f"report/exactness/{model}/{images}.parquet")),
        _ablation(read_table("ablation", uses / f"ablation/{model}/{images}.parquet")),
        _segmentation(read_table("segmentation", uses / f"segmentation/{model}/{masks}.parquet")),
        _retrieval(read_table("retrieval", uses / f"retrieval/{model}/{images}.parquet")),
        _maps(read_table("map_metrics", root / f"maps/{model}.metrics.parquet")),
    ]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; all but its first two columns are numbers."""
    rule = ["---" if place < 2 else "---:" for place in range(len(head))]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, rule, *rows])


def _per_cent(value: float) -> str:
    return "" if pd.isna(value) else f"{100 * value:.1f}"


def _between(row: pd.Series) -> str:
    return f"{_per_cent(row['low'])} to {_per_cent(row['high'])}"


def _times(summary: pd.DataFrame) -> str:
    whole = summary[summary["stage"] != "all"]
    seconds, jobs = whole["seconds"].sum(), int(whole["jobs"].sum())
    return (
        f" Its {jobs} jobs took {seconds / 60:.0f} minutes, added up.\nAll numbers are those of "
        "the Parquet tables under `results/photos/`, in per cent where no unit is\ngiven; "
        "intervals are at 95 %."
    )


def _exactness(table: pd.DataFrame) -> str:
    exact = table.iloc[0]
    return (
        f"## Sum error (n = {int(exact['n']):,})\n\n"
        f"The largest relative error of the sum of contributions as stored is {exact['worst']:.1e} "
        f"over all images,\nthe median {exact['median']:.1e}; a job fails above "
        f"{exact['tolerance']:.0e}."
    )


def _ablation(table: pd.DataFrame) -> str:
    count = int(table["n"].iloc[0])
    rows = []
    for curve, part in table[table["curve"] != "none"].groupby("curve", sort=False):
        shown = part[part["step"].isin(SHOWN.get(str(curve), (int(part["step"].max()),)))]
        if curve == "single":
            shown = part.nsmallest(COSTLY, "accuracy")
        for _, row in shown.iterrows():
            accuracy = _per_cent(row["accuracy"])
            rows.append(
                [curve, row["ablated"], row["step"], accuracy, _between(row), int(row["n"])]
            )
    return (
        f"## Mean ablation, the model's own classifier (n = {count:,})\n\n"
        "Components are replaced by their mean over the images, layer by layer (an attention block "
        "or an MLP is a\nlayer). With nothing ablated the accuracy is the model's own, with its "
        "own preprocessing (resize 248\nbicubic, centre crop 224). `single`: of all components "
        f"ablated alone, the {COSTLY} that cost most.\n\n"
        + _table(["curve", "last one", "ablated so far", "top-1", "interval", "n"], rows)
    )


def _segmentation(table: pd.DataFrame) -> str:
    count = int(table["n"].iloc[0])
    measures = ["pixel_accuracy", "iou_object", "miou", "map"]
    rows = [
        [row["protocol"], row["method"], *(_per_cent(row[m]) for m in measures), _between(row)]
        for _, row in table.iterrows()
    ]
    return (
        f"## Zero-shot segmentation of COCO objects (n = {count})\n\n"
        "The map is made of the contributions of each patch to the logits of the classes; the "
        "recipe that makes\none map of them was chosen on other COCO images "
        "(`docs/applications.md`). The object is whatever has a\nmask. ImageNet's classes are not "
        "COCO's, and many pictures hold several objects: read the numbers\nagainst the baselines "
        "of the same run. Protocols as in Chefer et al. (C) and in Balasubramanian et al.\n(V); "
        "the interval is that of mIoU (C) or of the object's IoU (V).\n\n"
        + _table(
            ["protocol", "method", "pixel accuracy", "IoU object", "mIoU", "mAP", "interval"], rows
        )
        + "\n\n"
        + _ahead(table)
    )


def _ahead(table: pd.DataFrame) -> str:
    """Where the decomposition is not the best method, by measure and protocol."""
    lost = []
    for protocol, part in table.groupby("protocol", sort=False):
        for measure in ("pixel_accuracy", "iou_object", "miou", "map"):
            ranked = part.dropna(subset=[measure]).sort_values(measure, ascending=False)
            if len(ranked) and ranked["method"].iloc[0] != "decomposition":
                name = measure.replace("_", " ")
                lost.append(f"{name} under {protocol} (`{ranked['method'].iloc[0]}`)")
    if not lost:
        return "The decomposition is ahead of every baseline of the run on every measure."
    return (
        "The decomposition is ahead of every baseline of the run but for: "
        + ", ".join(lost)
        + ".\n`uniform` calls all of it background, which is most of a picture with small objects."
    )


def _retrieval(table: pd.DataFrame) -> str:
    image = table[table["query"] == "image"]
    mean = image.pivot_table(index="method", columns="k", values="precision")
    ranks = sorted(mean.columns)
    rows = [[method, "", *(_per_cent(mean.loc[method, k]) for k in ranks)] for method in mean.index]
    best = mean[ranks[-1]].idxmax()
    return (
        f"## Retrieval by image (n = {int(image['n'].iloc[0]):,} images searched)\n\n"
        "There is one photograph a class, so a picture counts as right when its label is among the "
        "nearest labels\nof the probe's in CLIP's text space. Mean precision over the features of "
        "the configuration:\n\n"
        + _table(["method", " ", *(f"precision@{k}" for k in ranks)], rows)
        + f"\n\nBest at {ranks[-1]}: `{best}`; last: `{mean[ranks[-1]].drop('chance').idxmin()}`. "
        "`subspace` reads the features' texts through the map."
    )


def _maps(table: pd.DataFrame) -> str:
    rows = [
        [
            f"{row['method']}{' (default)' if row['chosen'] else ''}", row["split"], row["n"],
            f"{row['cosine']:.3f}", _per_cent(row["recall_at_1"]), _per_cent(row["recall_at_5"]),
        ]
        for _, row in table.iterrows()
    ]  # fmt: skip
    return (
        "## Map to CLIP's text embeddings of the labels\n\n"
        + _table(["method", "split", "images", "cosine", "recall@1", "recall@5"], rows)
        + "\n\nOn held-out images the map must place classes it never saw."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("run", type=Path)
    parser.add_argument("--docs", type=Path, required=True)
    options = parser.parse_args()
    day = date.fromtimestamp((options.run / "summary.parquet").stat().st_mtime)
    made = f"Made on {day} on {platform.machine()}."
    options.docs.write_text(page(options.run, made), "utf-8")


if __name__ == "__main__":
    main()
