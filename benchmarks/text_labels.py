"""Methods of labelling components with texts, held against random pools, the bound and the truth.

    python -m benchmarks.text_labels results/demo [--count 10] [--methods textspan …]
                                     [--docs docs/text-labels.md]

Reads the dumps, maps, texts and truths of a finished run whose images have known factors. Every
method chooses as many texts (there is no early end) from the same pool on the same images; random
texts and random vectors are chosen by the same method.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.isolated import markdown_rows
from pipeline_lib.artifacts import read_table
from pipeline_lib.classify import label_texts
from pipeline_lib.dumps import Dump, open_dump
from pipeline_lib.features import embeddings_of
from pipeline_lib.labelling import Labeller, Sample
from pipeline_lib.maps import Maps, load_maps, without_test
from pipeline_lib.reconstruction import (
    KINDS,
    Kept,
    along,
    bounds,
    linear_reading,
    reconstruction_table,
    zero_shot_reading,
)
from pipeline_lib.roles import category_shares, dealt_categories
from pipeline_lib.scores import moments
from pipeline_lib.streamed import stored_coordinates
from pipeline_lib.textspan import Labels, explained, random_pool
from pipeline_lib.truths import Factors

METHODS = ("textspan", "published", "omp", "nonnegative")
#: Ends the name of a count that is of shuffled categories.
CHANCE = " by chance"
#: Factors of the images whose names are categories of the pool.
MAIN = ("colour", "shape", "texture", "scene")
#: Times the categories are shuffled over the pool.
DEALS = 1000
#: Truths by which a component is known to carry a factor, and what that means.
TRUTHS = {
    "decodability_in_words": "it is read best of it, in the directions of its words",
    "joint_loss": "replacing it costs most of it",
}


@dataclass(frozen=True)
class Given:
    """A model of the run: its images, its maps and the texts of its CLIP space."""

    dump: Dump
    maps: Maps
    texts: pd.DataFrame
    truth: pd.DataFrame
    positions: np.ndarray
    seen: Sample
    fresh: Sample

    @classmethod
    def of(cls, root: Path, model: str, dataset: str) -> Given:
        """Everything read from the folder of a run."""
        manifest = root / "manifest" / dataset / "images.parquet"
        dump = open_dump(root / "contributions" / model / f"{dataset}.zarr", manifest)
        maps = load_maps(root / "maps" / f"{model}.safetensors")
        own = root / "features" / "texts" / f"{model}.parquet"
        space = own if own.is_file() else own.with_name("reference.parquet")
        positions = without_test(dump.manifest["split"])
        samples = []
        for some in (positions, np.setdiff1d(np.arange(dump.n), positions)):
            encoded = stored_coordinates(dump.factors, dump.coordinates, some)
            samples.append(Sample(moments(encoded, maps), encoded))
        return cls(
            dump,
            maps,
            read_table("text_features", space),
            read_table("truth", root / "scores" / model / f"{dataset}.truth.parquet"),
            positions,
            *samples,
        )


def compare(given: Given, methods: Iterable[str], count: int, seed: int) -> list[dict[str, object]]:
    """For every method what texts explain, keep and name: one row each."""
    pools = {
        "texts": embeddings_of(given.texts, "pool"),
        "random_texts": embeddings_of(given.texts, "random"),
    }
    pools["random"] = random_pool(*pools["texts"].shape, seed=seed)
    rows = []
    for method in methods:
        labellers = {kind: Labeller(method, pool) for kind, pool in pools.items()}
        labels = {
            kind: labeller.labels(given.seen, count=count, min_gain=0.0)
            for kind, labeller in labellers.items()
        }
        kept = {kind: labeller.kept(labels[kind]) for kind, labeller in labellers.items()}
        kept["pca"] = along(bounds(given.seen.found, count))
        rows.append(
            {"method": method, "images": given.seen.found.n, "heldout": given.fresh.found.n}
            | _explained(given, labellers, labels, count)
            | _kept(given, kept, count, seed)
            | _named(given, labels["texts"], seed)
        )
    return rows


def _explained(
    given: Given,
    labellers: Mapping[str, Labeller],
    labels: Mapping[str, Sequence[Labels]],
    count: int,
) -> dict[str, float]:
    """Shares of variance, mean over components weighted by their share of the representation."""
    found = given.seen.found
    weights = found.strengths.clamp_min(0).numpy()
    shares: dict[str, tuple[list[float], list[float]]] = {}
    for kind, each in labels.items():
        fresh = labellers[kind].shares(each, given.fresh)
        shares[kind] = (
            [float(sum(label.gains)) for label in each],
            [values[-1] if values else 0.0 for values in fresh],
        )
    principal = bounds(found, count)
    shares["pca"] = tuple(
        [float(explained(some, c, rows)[-1:].sum()) for c, rows in enumerate(principal)]
        for some in (found, given.fresh.found)
    )  # type: ignore[assignment]
    vary = np.array([bool(label.texts) for label in labels["texts"]])
    return {
        f"{kind} {name}": float(np.average(np.array(values)[vary], weights=weights[vary]))
        for kind, both in shares.items()
        for name, values in zip(("fitted", "heldout"), both, strict=True)
    }


def _kept(given: Given, kept: Mapping[str, Kept], count: int, seed: int) -> dict[str, float]:
    """Accuracies of the model with heads, or all components, replaced by what is kept of them."""
    seen, images = given.seen, given.dump.manifest.iloc[given.positions]
    factors = Factors.of(images, [name for name in MAIN if name in images])
    classes = label_texts(given.texts, "label", images["label"].dropna().tolist())
    kinds = given.dump.components["kind"]
    table = reconstruction_table(
        seen.images(),
        seen.found,
        kept,
        [
            linear_reading(seen.images(), seen.found, factors, seed=seed),
            zero_shot_reading(seen.found, given.maps.bias, images["label"], classes),
        ],
        replaced={"heads": kinds.index[kinds == "head"], "all": kinds.index[kinds != "bias"]},
        counts=[count],
    )
    keys = ["reader", "replaced", "directions", "texts"]
    means = table.groupby(keys, sort=False)["accuracy"].mean()
    return {
        f"{reader} whole" if texts < 0 else f"{reader} {replaced} {kind}": float(value)
        for (reader, replaced, kind, texts), value in means.items()
    }


def _named(given: Given, labels: Sequence[Labels], seed: int) -> dict[str, float]:
    """Of how many components that are known to carry a factor the texts speak of it most.

    By chance: of how many on average, with the categories shuffled over the pool.
    """
    pool = given.texts[given.texts["use"] == "pool"]["feature"].to_numpy()
    names, codes = np.unique(pool, return_inverse=True)
    right = {f"{truth}{end}": 0.0 for truth in TRUTHS for end in ("", CHANCE)}
    for truth in TRUTHS:
        for factor in MAIN:
            known = given.truth[given.truth["feature"] == factor].dropna(subset=[truth])
            if known.empty or factor not in names:
                continue
            label = labels[int(known.loc[known[truth].idxmax(), "component"])]
            own = codes[None, list(label.texts)]
            dealt = dealt_categories(codes, len(label.texts), DEALS, seed)
            for end, categories in (("", own), (CHANCE, dealt)):
                shares = category_shares(np.array(label.gains), categories, len(names))
                right[f"{truth}{end}"] += float((names[shares.argmax(axis=1)] == factor).mean())
    return right


def page(table: pd.DataFrame, asked: Sequence[str], command: str, count: int) -> str:
    """The page docs/text-labels.md; `asked` are the factors that components are known to carry."""
    of = len(asked) * table["model"].nunique()
    columns = {}
    for truth in TRUTHS:
        said = truth.replace("_", " ")
        columns |= {truth: f"{said}, right of {of}", f"{truth}{CHANCE}": f"{said}, by chance"}
    known = table.groupby("method", sort=False)[list(columns)].sum()
    for truth in TRUTHS:
        known[truth] = known[truth].map("{:.0f}".format)
        known[f"{truth}{CHANCE}"] = known[f"{truth}{CHANCE}"].map("{:.1f}".format)
    known = known.rename(columns=columns).reset_index()
    both = [
        row | {name: f"{row[f'{kind} fitted']:.3f} / {row[f'{kind} heldout']:.3f}"
               for kind, name in KINDS.items()}
        for row in table.to_dict("records")
    ]  # fmt: skip
    means = table.groupby("method", sort=False)[
        [f"{kind} {name}" for kind in KINDS for name in ("fitted", "heldout")]
    ].mean()
    lines = [
        "# Text labels: which method to choose texts by",
        "",
        f"Made on {date.today().isoformat()} by `{command}` on {platform.machine()} "
        f"({torch.get_num_threads()} threads). {count} texts of every component, chosen on "
        f"{int(table['images'].max())} images of each model, without an early end; held out: "
        f"{int(table['heldout'].max())} further images (split `test`). Random texts are as many as "
        "the pool has, made of words drawn from it: the words keep their meaning, so the texts are "
        "ahead of them by what is said with the words, and a component that is about one word is "
        "explained by either. Random vectors have no words at all. Both are chosen from by the "
        "method of the row.",
        "",
        "## How much of a component its texts explain",
        "",
        "Share of the variance, fitted / held out; mean over components, weighted by their share "
        "of the representation. Nothing explains more of the images of the fit than principal "
        "components. `textspan` and `published` count what lies along the texts' projections to "
        "the directions in which a component varies, `omp` what lies in the span of the whole "
        "texts, `nonnegative` what their amounts of at least 0 make up: their shares say "
        "different things and are to be held against the same row's random ones.",
        "",
        *markdown_rows(["model", "method", *KINDS.values()], both),
        "",
        f"{_verdict(means)}",
        "",
        "## Is the right category found?",
        "",
        "For each model and each of "
        + ", ".join(asked)
        + ": the component that carries this factor of the images by a truth ("
        + "; ".join(f"*{name.replace('_', ' ')}*: {what}" for name, what in TRUTHS.items())
        + "). Right: of what its texts explain, the largest share is that of texts of this "
        "category. By chance: the same with the categories shuffled over the pool, mean of "
        f"{DEALS} shuffles.",
        "",
        *markdown_rows(["method", *columns.values()], known.to_dict("records")),
        "",
        *_accuracies(table, "linear", "How well factors are still read", (
            "Mean accuracy over " + ", ".join(asked)
            + " of a linear reader fitted on the whole representation, on images it was not fitted "
            "on, when every head, or every component, is replaced by its mean and what its texts "
            "keep of the rest."
        )),
        "",
        *_accuracies(table, "zero_shot", "How well labels are still told", (
            "Accuracy of the zero-shot classifier of the images' labels (the nearest text of a "
            "class in CLIP space) in the same representations; nothing is fitted."
        )),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _verdict(means: pd.DataFrame) -> str:
    """In one sentence a method: what texts are ahead of random ones on held-out images."""
    said = []
    for method, row in means.iterrows():
        ahead = {kind: row["texts heldout"] - row[f"{kind} heldout"] for kind in KINDS}
        said.append(
            f"`{method}`: {ahead['random_texts']:+.3f} to random texts, {ahead['random']:+.3f} to "
            f"random vectors, {ahead['pca']:+.3f} to principal components"
        )
    return "Mean over models, held out, of the texts against the rest: " + "; ".join(said) + "."


def _accuracies(table: pd.DataFrame, reader: str, title: str, text: str) -> list[str]:
    replaced = [name for name in ("heads", "all") if f"{reader} {name} texts" in table]
    columns = {
        f"{reader} {name} {kind}": f"{name}: {word}"
        for name in replaced
        for kind, word in KINDS.items()
    } | {f"{reader} whole": "nothing replaced"}
    rows = table[["model", "method", *columns]].rename(columns=columns)
    rows[list(columns.values())] = rows[list(columns.values())].map("{:.3f}".format)
    head = ["model", "method", *columns.values()]
    return [f"## {title}", "", text, "", *markdown_rows(head, rows.to_dict("records"))]


def main() -> None:
    """Compare the methods on every model of a run, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.text_labels", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run's results")
    parser.add_argument("--dataset", default="world")
    parser.add_argument("--count", type=int, default=10, help="texts of every component")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, help="page to write")
    asked = parser.parse_args()
    rows: list[dict[str, object]] = []
    for path in sorted((asked.run / "maps").glob("*.json")):
        given = Given.of(asked.run, path.stem, asked.dataset)
        found = compare(given, asked.methods, asked.count, asked.seed)
        rows += [{"model": path.stem} | row for row in found]
        print(pd.DataFrame(rows[-len(found) :]).round(3).to_string(), flush=True)
    pool = given.texts[given.texts["use"] == "pool"]["feature"]
    known = set(given.truth["feature"]) & set(pool)
    command = f"python -m benchmarks.text_labels {' '.join(sys.argv[1:])}"
    made = page(pd.DataFrame(rows), [n for n in MAIN if n in known], command, asked.count)
    print(made)
    if asked.docs:
        asked.docs.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
