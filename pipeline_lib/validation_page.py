"""The page docs/validation.md, from the tables of a run: what was held against the truth, and how.

Every number stands in a table of the run; nothing is left out for being bad.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pipeline_lib.bars import bars_section
from pipeline_lib.labelling import METHOD_NAMES
from pipeline_lib.reconstruction import KINDS
from pipeline_lib.validation import CONFIRMING, DECILE, NAMING, SCORES, VERDICTS

#: Factors that name what is in a picture; the others name where, how large and how many.
MAIN = ("colour", "shape", "texture", "scene")
#: Tables of applications that have bars.
APPLICATIONS = (
    "retrieval",
    "segmentation",
    "segmentation_images",
    "spurious_summary",
    "code_summary",
)
#: Splits of the table of maps.
_SPLITS = {"heldout": "held out", "test": "test"}
#: Scores of the table factor by factor.
_BY_FACTOR = ("score", "score_published", "random")
_NAMES = {
    "score": "score",
    "score_published": "score, published form",
    "variance_explained": "variance explained",
    "random": "dealt at random",
}


def validation_page(tables: Mapping[str, pd.DataFrame], made: Mapping[str, str]) -> str:
    """The page as Markdown.

    Parameters
    ----------
    tables
        Tables confirmed, validation, truth, map_metrics, labels and reconstruction of all models;
        those of `APPLICATIONS` that the run has.
    made
        Command, date, machine, and name of the run; `method` of the labels; `kinship`, a
        sentence on models that are not independent of each other, or ''.
    """
    images = int(tables["validation"]["n"].max())
    parts = [
        "# Validation",
        f"Made by `{made['command']}` on {made['date']} ({made['machine']}) from the run "
        f"`{made['run']}`: {images} images, those of split `test` left out except where it says "
        "*held out*. The truths are in the table `truth`, their meaning in `docs/artifacts.md`: "
        "*decodability*, how well a linear reader tells the factor from the component alone (R² on "
        "images it was not fitted on); *decodability in words*, the same from its mapped "
        "contribution in the subspace of the factor's words; *ablation loss*, the accuracy that a "
        "linear reader of the whole representation loses when the component is replaced by its "
        "mean; *joint loss*, the same on average over sets of others replaced with it; *margin "
        "loss*, as ablation loss but for the reader's margin; *clip*, Spearman correlation over "
        "images of what the component and the reference CLIP say of the feature's words. Numbers "
        "in brackets are 95 % intervals over images: 1.96 standard errors from redraws of them "
        "(the table `redraws`), scores and truths taken from the same ones; readers are not fitted "
        f"anew.{made['kinship']}",
        _confirmed(tables["confirmed"]),
        _agreement(tables["validation"]),
        _by_factor(tables["validation"]),
        _control(tables["validation"], tables["truth"]),
        _maps(tables["map_metrics"]),
        _labels(tables["labels"], METHOD_NAMES[made["method"]]),
        _reconstruction(tables["reconstruction"], METHOD_NAMES[made["method"]]),
        bars_section({name: tables[name] for name in APPLICATIONS if name in tables}, _table),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _confirmed(table: pd.DataFrame) -> str:
    if table.empty:
        return ""
    main = table[table["feature"].isin(MAIN)]
    text = (
        "## Is the component that a score names first the right one?\n\n"
        "For each known factor the component with the highest score, its value in the truths and "
        "its place in them among the components that vary. Confirmed: in both truths of a pair "
        f"fewer than {1 - DECILE:.0%} of the components are above it, and the median component is "
        "below it; in brackets the share of redraws of the images in which the first component "
        "there is confirmed by the truths there. Aimed at: colour, shape, texture and scene in "
        "CLIP and in three other models, by the first pair. The other pairs were added after its "
        "count was known. Ablation loss is 0 where several components carry a factor, since one of "
        "them alone is not missed: *joint loss* is what it costs on average when random halves of "
        "the others are ablated too. "
        "Decodability is easier for a component of many coordinates, in whatever direction they "
        "say it: *decodability in words* reads the same few numbers of every component, what it "
        "says in the directions of the factor's words. `docs/scores.md` says in which order scores "
        "and truths were tried, how the others do, and on which models nothing was chosen.\n\n"
        "How many are confirmed, and the models with all four. The last row counts the factors for "
        "which any component would be: no score could confirm more.\n\n"
    )
    pairs = [" and ".join(pair).replace("_", " ") for pair in VERDICTS.values()]
    rows = [
        [_NAMES[by], *(_count(part, part[f"confirmed{end}"]) for end in VERDICTS)]
        for by, part in main.groupby("by", sort=False)
    ]
    one = main[main["by"] == NAMING[0]]
    any_of = [_count(one, one[f"candidates{end}"] > 0) for end in VERDICTS]
    parts = [text + _table(["first by", *pairs], [*rows, ["any component", *any_of]])]
    for by, part in table.groupby("by", sort=False):
        parts.append(f"### First by {_NAMES[by]}\n\n{_tops(part)}")
    return "\n\n".join(parts)


def _tops(table: pd.DataFrame) -> str:
    """First components, their places in the truths, and which pairs of truths confirm them."""
    rows = []
    for row in table.to_dict("records"):
        cells = [row["model"], row["feature"], f"`{row['top']}`", f"{row['score']:.2f}"]
        for truth in CONFIRMING:
            place = 1 + round((1 - row[f"{truth}_percentile"]) * row["components"])
            ends = [f"{row[f'{truth}_{end}']:.3f}" for end in ("value", "low", "high")]
            value, low, high = ends
            cells.append(f"{value} [{low}, {high}] ({place} of {row['components']})")
        for end in VERDICTS:
            verdict = "yes" if row[f"confirmed{end}"] else "**no**"
            cells.append(f"{verdict} ({row[f'confirmed{end}_share']:.0%})")
        rows.append(cells)
    head = ["model", "factor", "first component", "score"]
    truths = [name.replace("_", " ") for name in CONFIRMING]
    return _table([*head, *truths, "confirmed", "jointly", "in words"], rows)


def _count(main: pd.DataFrame, found: pd.Series) -> str:
    whole = found.groupby(main["model"], sort=False).agg(["sum", "size"])
    all_four = [str(model) for model, row in whole.iterrows() if row["sum"] == row["size"]]
    return f"{int(found.sum())} of {len(main)} ({', '.join(all_four) or 'no model'})"


def _agreement(table: pd.DataFrame) -> str:
    text = (
        "## How well does a score's ranking follow the truths?\n\n"
        "Spearman correlation *between* components (for each factor the components are ranked; "
        "mean over factors) and *within* components (for each component its factors are ranked; "
        "mean over components). Beside them the default scores dealt to the components at random: "
        "the mean over deals and the middle 95 % of them, which a score must leave to say "
        "something. Dealt scores keep what all components have in common for a factor, so within "
        "components the mean need not be 0.\n\n"
    )
    rows = []
    means = table[table["feature"] == ""]
    for (model, truth, across), part in means.groupby(["model", "truth", "across"], sort=False):
        if truth == "clip_shuffled":
            continue
        found = part.set_index("score")
        cells = [_interval(found.loc[name]) for name in SCORES]
        rows.append([model, truth, "between" if across == "components" else "within", *cells])
    return text + _table(["model", "truth", "components", *(_NAMES[name] for name in SCORES)], rows)


def _interval(row: pd.Series) -> str:
    return f"{row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def _within(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"


def _by_factor(table: pd.DataFrame) -> str:
    chosen = table[(table["across"] == "components") & (table["feature"] != "")]
    chosen = chosen[(chosen["truth"] != "clip_shuffled") & chosen["score"].isin(_BY_FACTOR)]
    features = list(dict.fromkeys(chosen["feature"]))
    rows = []
    for (model, truth, score), part in chosen.groupby(["model", "truth", "score"], sort=False):
        found = part.set_index("feature")
        cells = [_interval(found.loc[name]) if name in found.index else "" for name in features]
        rows.append([model, truth, _NAMES[score], *cells])
    text = (
        "### Factor by factor\n\n"
        "The default score, the published one and the default one dealt at random against each "
        "truth, between components. Factors that the models hardly carry (their decodability is "
        "near 0 in every component) cannot agree with anything.\n\n"
    )
    return text + _table(["model", "truth", "score", *features], rows)


def _control(table: pd.DataFrame, truths: pd.DataFrame) -> str:
    chosen = table[(table["truth"] == "clip_shuffled") & (table["score"] == "score")]
    if chosen.empty:
        return ""
    rows = []
    for model, part in chosen.groupby("model", sort=False):
        draws = np.stack(truths.loc[truths["model"] == model, "clip_shuffled"].dropna().tolist())
        over = part[part["feature"] == ""].set_index("across")
        cells = [
            _interval(over.loc[name]) if name in over.index else ""
            for name in ("components", "features")
        ]
        rows.append(
            [
                model,
                *cells,
                f"{np.abs(draws.mean(axis=1)).max():.3f}",
                f"{np.abs(draws).mean():.3f}",
                f"{np.mean(np.abs(draws) < 0.05):.1%}",
            ]
        )
    text = (
        "## Control: shuffled images\n\n"
        f"The same with CLIP's images in {draws.shape[1]} random orders, which must give nothing: "
        "the mean over the orders and the middle 95 % of them. "
        "The last columns are the correlations over images themselves: the largest mean over the "
        "orders of any component and feature, their mean size in a single order, and the share "
        "below 0.05 in a single order.\n\n"
    )
    head = ["model", "between components", "within components", "largest mean ρ", "mean size of ρ"]
    return text + _table([*head, "below 0.05"], rows)


def _maps(table: pd.DataFrame) -> str:
    rows = [
        [row["model"], row["method"], "chosen" if row["chosen"] else "", _SPLITS[row["split"]]]
        + [row["n"]]
        + [_within(row, name) for name in ("cosine", "recall_at_1", "recall_at_5")]
        for row in table[table["split"].isin(_SPLITS)].to_dict("records")
    ]
    text = (
        "## Maps to CLIP space\n\n"
        "On the images held out of the fit, on which the strength of a ridge and the last epoch "
        "are chosen, and on those of split `test`, on which nothing is; with 95 % intervals over "
        "the images. `docs/maps.md` has all methods with the truths.\n\n"
    )
    head = ["model", "method", "", "split", "images", "cosine", "recall@1", "recall@5"]
    return text + _table(head, rows)


def _labels(table: pd.DataFrame, method: str) -> str:
    beside = ["random_texts", "random", "pca"]
    columns = ["cumulative", "cumulative_heldout", *(f"cumulative_{kind}" for kind in beside)]
    rows = []
    for model, part in table.groupby("model", sort=False):
        last = part.sort_values("rank").groupby("component").tail(1)
        weight = last["strength"].clip(lower=0)
        means = [float(np.average(last[name], weights=weight)) for name in columns]
        texts = float((1 + last["rank"]).mean())
        rows.append([model, len(last), f"{texts:.1f}", *map(_share, means)])
    text = (
        "## Text labels\n\n"
        f"Texts chosen by {method}. Share of a component's variance that its texts explain, mean "
        "over components weighted by their share of the representation; beside it the same on "
        "held-out images (split `test`), for as many texts of random words of the pool (where the "
        "reference encodes texts) and random vectors, chosen in the same way, and for as many "
        "principal components, which nothing can surpass. Random texts are the stronger "
        "control: they keep what the pool’s words say alone.\n\n"
    )
    head = ["model", "components", "texts each", "explained", "held out"]
    return text + _table([*head, *(KINDS[kind] for kind in beside)], rows)


def _share(value: float) -> str:
    """With two digits; empty where it is missing."""
    return "" if np.isnan(value) else f"{value:.2f}"


def _reconstruction(table: pd.DataFrame, method: str) -> str:
    chosen = table[table["feature"].isin(MAIN)] if len(table) else table
    if chosen.empty:
        return ""
    steps = sorted(set(chosen["texts"]) - {-1})
    means = chosen.groupby(["model", "replaced", "directions", "texts"], sort=False)[
        "accuracy"
    ].mean()
    rows = []
    for model, replaced in dict.fromkeys((m, r) for m, r, _, _ in means.index):
        whole = means[model, replaced, "texts", -1]
        for kind in [kind for kind in KINDS if (model, replaced, kind, steps[0]) in means.index]:
            cells = [f"{means[model, replaced, kind, step]:.3f}" for step in steps]
            rows.append([model, replaced, KINDS[kind], *cells, f"{whole:.3f}"])
    text = (
        "## Accuracy with components replaced by their texts\n\n"
        "Mean accuracy over colour, shape, texture and scene of a linear reader of the mapped "
        "representation (on images it was not fitted on) when every head, or every component, is "
        f"replaced by its mean plus what its first texts (by {method}) keep of the rest; the same "
        "for texts of random words of the pool (where the reference encodes texts) and random "
        "vectors, chosen in the same way, and for principal components. Last column: nothing "
        "replaced.\n\n"
    )
    head = ["model", "replaced", "directions", *(f"{step} a component" for step in steps), "whole"]
    return text + _table(head, rows)
