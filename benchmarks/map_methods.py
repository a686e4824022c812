"""Ways to fit maps to CLIP space, by held-out cosine and by the truth about the components.

    python -m benchmarks.map_methods results/demo [--dataset world] [--out FILE.parquet]
                                     [--docs docs/maps.md]

Reads the dumps of a run whose images have known factors. Every method is fitted on the same images
and looked at on the same held-out ones; the scores that follow from each map are then held against
the truth (`pipeline_lib.truths`), which no map was fitted to.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from pipeline_lib.artifacts import read_table
from pipeline_lib.coordinates import Encoded, Source, encode
from pipeline_lib.dumps import Dump, open_dump, open_features
from pipeline_lib.features import concept_embeddings
from pipeline_lib.map_fits import Settings, fit_maps
from pipeline_lib.maps import split_heldout, without_test
from pipeline_lib.redraws import Weights, redraw
from pipeline_lib.scores import moments, score_components, with_components
from pipeline_lib.significance import redrawn_scores
from pipeline_lib.truths import Factors, known_factors, truth_table
from pipeline_lib.validation import confirmed_table, validation_table

METHODS = ("compalign", "cosine", "ridge", "anchored", "shared", "procrustes")
#: Truths that decide, between methods that are this near the best held-out cosine.
TRUTHS, NEAR = ("decodability", "ablation_loss", "joint_loss"), 0.002
#: Features whose first component is looked up in the truths.
FEATURES = ("colour", "shape", "texture", "scene")


def compare(root: Path, model: str, dataset: str) -> pd.DataFrame:
    """One row per method for one model."""
    manifest = root / "manifest" / dataset / "images.parquet"
    dump = open_dump(root / "contributions" / model / f"{dataset}.zarr", manifest)
    facts = json.loads((root / "maps" / f"{model}.json").read_text("utf-8"))["facts"]
    positions = without_test(dump.manifest["split"])
    images = dump.manifest.iloc[positions]
    source = Source(dump.n, dump.contributions).at(positions)
    clip = open_features(root / "features" / f"{dataset}.zarr", manifest).embeddings(positions)
    heldout = split_heldout(
        images["image_id"].tolist(), facts["settings"]["heldout"], facts["seed"]
    )
    texts = read_table("text_features", root / "features" / "texts" / "reference.parquet")
    features = concept_embeddings(texts)
    factors = Factors.of(images, known_factors(images, features))
    encoded = encode(source)
    weights = redraw(len(encoded), 20, facts["seed"])
    known: tuple[pd.DataFrame, pd.DataFrame] | None = None
    rows = []
    for method in METHODS:
        fit = fit_maps(
            source,
            torch.from_numpy(clip),
            heldout,
            method=method,  # type: ignore[arg-type]
            settings=Settings(seed=facts["seed"]),
        )
        found = moments(encoded, fit.maps)
        if known is None:
            known = _truths(encoded, found, features, factors, dump, weights)
        scores = with_components(score_components(found, features), dump.components)
        drawn = redrawn_scores(encoded, found, features, weights)
        drawn = drawn.merge(known[1], on=["feature", "component"])
        heldout_row = fit.metrics.query("split == 'heldout'").iloc[0]
        rows.append(
            {"model": model, "method": method, "images": len(encoded)}
            | heldout_row[["cosine", "recall_at_1", "seconds"]].to_dict()
            | _agreements(scores, known[0], drawn, len(encoded))
        )
    return pd.DataFrame(rows)


def _truths(
    encoded: Encoded,
    found: Any,
    features: dict[str, Any],
    factors: Factors,
    dump: Dump,
    weights: Weights,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The truths that do not depend on the map, on the images and on redraws of them."""
    table, drawn = truth_table(
        encoded, found, features, factors=factors, rankings={}, shuffles=0, seed=0, weights=weights
    )
    return with_components(table, dump.components), drawn


def _agreements(
    scores: pd.DataFrame, known: pd.DataFrame, drawn: pd.DataFrame, images: int
) -> dict[str, float]:
    table = validation_table(scores, known, drawn, images=images, deals=20, seed=0)
    means = table.query("across == 'components' and feature == '' and score == 'score'")
    tops = confirmed_table(scores, known, drawn).query("by == 'score'")
    confirmed = tops.set_index("feature")["confirmed"]
    asked = [bool(confirmed[name]) for name in FEATURES if name in confirmed]
    return means.set_index("truth")["value"].to_dict() | {"confirmed": sum(asked)}


def as_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown: one row per model and method, then the means over models."""
    numbers = ["cosine", "recall_at_1", "decodability", "ablation_loss", "joint_loss"]
    means = table.groupby("method", sort=False)[[*numbers, "confirmed"]].mean()
    lines = [
        "| model | method | held-out cosine | recall@1 | decodability | ablation loss | "
        "joint loss | confirmed of 4 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    every = pd.concat([table, means.reset_index().assign(model="**mean**")])
    for row in every.to_dict("records"):
        values = " | ".join(f"{row[name]:.3f}" for name in numbers)
        confirmed = f"{row['confirmed']:.3g}"
        lines.append(f"| {row['model']} | {row['method']} | {values} | {confirmed} |")
    return "\n".join(lines)


def page(table: pd.DataFrame, command: str) -> str:
    """The page docs/maps.md."""
    means = table.groupby("method")[["cosine", *TRUTHS]].mean()
    wins = ", ".join(f"{means[name].idxmax()} by {name.replace('_', ' ')}" for name in means)
    near = means[means["cosine"] >= means["cosine"].max() - NEAR]
    agreement = means[list(TRUTHS)].mean(axis=1).sort_values(ascending=False)
    truth = agreement[near.index]
    listing = ", ".join(f"{name} {value:.3f}" for name, value in agreement.items())
    return "\n".join(
        [
            "# Maps to CLIP space: which way to fit them",
            "",
            f"Made on {date.today().isoformat()} by `{command}` on {platform.machine()} "
            f"({torch.get_num_threads()} threads), from {int(table['images'].max())} images of "
            "each model (test images left out). Cosine and recall are those of held-out images. "
            "Decodability, ablation loss and joint loss are Spearman correlations, over "
            "components and averaged over factors, between the score that follows from the map "
            "and that truth; *confirmed* counts the factors among colour, shape, texture and scene "
            "whose first component is in the top decile of both decodability and ablation loss. "
            "No map was fitted to any of these truths.",
            "",
            as_markdown(table),
            "",
            f"Best mean over models: {wins}. Among the methods within {NEAR} of the best held-out "
            f"cosine ({', '.join(near.index)}), {truth.idxmax()} agrees best with the truths (mean "
            f"of the three correlations {truth.max():.3f}). The default of `maps.method` is "
            "`anchored`. That rule was set with a first table of this kind in view; cosine and "
            f"truths do not choose the same method. That mean, for all methods: {listing}.",
            "",
        ]
    )


def main() -> None:
    """Fit every method on every model of a run that is not a CLIP, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.map_methods", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run's results")
    parser.add_argument("--dataset", default="world")
    parser.add_argument("--models", nargs="*", help="by default all whose maps are fitted")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--docs", type=Path)
    asked = parser.parse_args()
    tables = []
    for path in sorted((asked.run / "maps").glob("*.json")):
        fitted = json.loads(path.read_text("utf-8"))["method"] != "identity"
        if fitted and (not asked.models or path.stem in asked.models):
            tables.append(compare(asked.run, path.stem, asked.dataset))
            print(tables[-1].round(3).to_string(), flush=True)
    table = pd.concat(tables, ignore_index=True)
    print(as_markdown(table))
    if asked.out:
        table.to_parquet(asked.out)
    if asked.docs:
        command = f"python -m benchmarks.map_methods {asked.run} --docs {asked.docs}"
        asked.docs.write_text(page(table, command), "utf-8")


if __name__ == "__main__":
    main()
