"""Sentences that say what a run found, made from its tables, with their numbers.

Each sentence states what was measured whichever way it came out, beside its baseline or control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from pipeline_lib.report.collect import Run
from pipeline_lib.report.words import (
    decimal,
    is_absent,
    listed,
    mean,
    method_name,
    percent,
    plural,
    points,
    scientific,
    short_name,
)

#: Which findings open the page, where the run has them: the first three of this order.
FIRST_SCREEN = (
    "scores",
    "spurious",
    "retrieval",
    "segmentation",
    "ablation",
    "heatmaps",
    "maps",
)

#: Queries to a model below which a mean over them is no finding.
_FEWEST_QUERIES = 10


@dataclass(frozen=True)
class Finding:
    """A sentence with its heading, and the section whose tables it was made from."""

    section: str
    title: str
    text: Markup


def find_all(run: Run) -> dict[str, Finding]:
    """The finding of every section that has one, by the section's name."""
    found = {}
    for section, sentence in _SENTENCES.items():
        text = sentence(run)
        if text is not None:
            found[section] = Finding(section, _TITLES[section], text)
    return found


def first_screen(findings: dict[str, Finding]) -> list[Finding]:
    """The three findings that open the page."""
    return [findings[name] for name in FIRST_SCREEN if name in findings][:3]


def on_average(count: int, noun: str = "model") -> str:
    """`on average over 3 models`, or nothing where there is only one to speak of."""
    return f" on average over {plural(count, noun)}" if count > 1 else ""


def component_link(model: str, component: str) -> Markup:
    """A component's name in a sentence; opens its card."""
    return Markup(
        '<button class="component" data-model="{}" data-component="{}">{}</button>'
    ).format(model, component, short_name(component))


def _exactness(run: Run) -> Markup | None:
    table = run["exactness"]
    if table.empty:
        return None
    worst = table.loc[table["worst"].idxmax()]
    return Markup(
        "The components of every model sum to its representation: the largest relative error of "
        "any image is <b>{}</b> ({} on {}; {} over {}), where a job would fail above {}."
    ).format(
        scientific(worst["worst"]),
        worst["model"],
        worst["dataset"],
        plural(int(table["n"].sum()), "decomposition"),
        plural(table["model"].nunique(), "model"),
        scientific(worst["tolerance"]),
    )


def _maps(run: Run) -> Markup | None:
    table = run["map_metrics"]
    table = table[table["chosen"].astype(bool) & (table["split"] == "heldout")]
    fitted = table[(table["method"] != "identity") & table["cosine"].notna()]
    if fitted.empty:
        return None
    spread = ""
    if len(fitted) > 1:
        low, high = fitted.loc[fitted["cosine"].idxmin()], fitted.loc[fitted["cosine"].idxmax()]
        spread = f", from {decimal(low['cosine'], 2)} for {low['model']} "
        spread += f"to {decimal(high['cosine'], 2)} for {high['model']}"
    return Markup(
        "On held-out images the mapped contributions point to the target with a mean cosine of "
        "<b>{}</b>{}{}; <b>{}</b> of {} lie nearest to their own ({} by chance)."
    ).format(
        decimal(fitted["cosine"].mean(), 2),
        on_average(len(fitted), "fitted map"),
        spread,
        percent(fitted["recall_at_1"].mean(), 0),
        plural(int(fitted["n"].min()), "image"),
        percent(1 / fitted["n"].min(), 1),
    )


def specialists(scores: pd.DataFrame) -> pd.DataFrame:
    """Best component of every model and feature, with its highest score for any `other`.

    Examples
    --------
    >>> table = pd.DataFrame({"model": ["a"] * 2, "feature": ["x"] * 2, "component": [0, 1]})
    >>> specialists(table.assign(score=[0.2, 0.7], margin=[0.1, 0.5]))["component"].tolist()
    [1]
    """
    best = scores.loc[scores.groupby(["model", "feature"], sort=False)["score"].idxmax()]
    return best.assign(other=best["score"] - best["margin"])


def leading_component(run: Run) -> pd.Series | None:
    """The head (where there is any) that leads its next feature by most: its row of scores."""
    heads = run["scores"][run["scores"]["kind"] == "head"]
    best = specialists(heads if len(heads) else run["scores"])
    return None if best.empty else best.loc[best["margin"].idxmax()]


def _scores(run: Run) -> Markup | None:
    top = leading_component(run)
    if top is None:
        return None
    labels = run["labels"]
    texts = labels[(labels["model"] == top["model"]) & (labels["component"] == top["component"])]
    first = texts.sort_values("rank")["text"].head(3).map("“{}”".format).tolist()
    return Markup(
        "{} of {} carries <b>{}</b> of what varies in <b>{}</b> (95\u202f% interval {} to {}), and "
        "at most {} of any other feature{}."
    ).format(
        component_link(top["model"], top["id"]),
        top["model"],
        percent(top["score"], 0),
        top["feature"],
        percent(top["low"], 0),
        percent(top["high"], 0),
        percent(max(top["other"], 0.0), 0),
        f"; its first texts are {listed(first)}" if first else "",
    )


def _ablation(run: Run) -> Markup | None:
    table = run["ablation"]
    if table.empty:
        return None
    full = mean_by_model(table[table["curve"] == "none"])
    clauses = []
    for curve, words in (("all_mlp", "all MLPs"), ("all_attention", "all attention")):
        change = (mean_by_model(table[table["curve"] == curve]) - full).dropna()
        if len(change):
            clauses.append(Markup("of {} <b>{}</b>").format(words, points(change.mean())))
    if not clauses:
        return None
    return Markup(
        "Replacing direct effects by their means over images changes the accuracy of {}{}: {}."
    ).format(percent(full.mean()), on_average(len(full)), Markup(", ").join(clauses))


def mean_by_model(table: pd.DataFrame) -> pd.Series:
    """Mean accuracy of each model over its targets and classifiers."""
    return table.groupby("model", sort=False)["accuracy"].mean()


def report_k(table: pd.DataFrame) -> int:
    """Number of retrieved images to report: 10 where it was measured, else the most."""
    measured = sorted(table["k"].unique())
    return 10 if 10 in measured else int(measured[-1])


def is_asked(table: pd.DataFrame) -> pd.Series:
    """Rows of the table `retrieval` that measure the property asked for.

    Where a feature is no column of the manifest, the images are judged by their label instead.
    """
    judged = set(table.loc[table["feature"] == table["measured"], "feature"])
    features = set(table["feature"])
    by_label = ~table["feature"].isin(judged) & ~table["measured"].isin(features)
    return (table["feature"] == table["measured"]) | by_label


def by_neighbours(table: pd.DataFrame) -> pd.Series:
    """Rows of the table `retrieval` whose truth is nearness of labels, not a property."""
    return table["measured"] == "label_neighbours"


def with_published(table: pd.DataFrame) -> pd.DataFrame:
    """Table `retrieval` with the published way also where it is the one that was chosen.

    There it has no rows of its own in the table, and a mean over features would leave it out.

    Examples
    --------
    >>> rows = [("x", "components", 0.9), ("x", "published", 0.5), ("y", "components", 0.7)]
    >>> table = pd.DataFrame(rows, columns=["feature", "method", "precision"])
    >>> filled = with_published(table.assign(model="a", query="text"))
    >>> filled[filled["method"] == "published"].set_index("feature")["precision"].to_dict()
    {'x': 0.5, 'y': 0.7}
    """
    keys = ["model", "query", "feature"]
    published = table[table["method"] == "published"]
    own = table[(table["method"] == "components") & table["query"].isin(published["query"])]
    there = pd.MultiIndex.from_frame(own[keys]).isin(pd.MultiIndex.from_frame(published[keys]))
    return pd.concat([table, own[~there].assign(method="published")], ignore_index=True)


def _retrieval(run: Run) -> Markup | None:
    table = with_published(run["retrieval"])
    if table.empty:
        return None
    k = report_k(table)
    asked = table[is_asked(table) & ~by_neighbours(table) & (table["k"] == k)]
    parts = {query: asked[asked["query"] == query] for query in ("image", "text")}
    enough = [query for query, part in parts.items() if _queries(part) >= _FEWEST_QUERIES]
    if not enough:
        return None
    asked_with = {"image": "with a picture", "text": "by text"}
    first, *rest = enough
    means = {q: parts[q].groupby("method", sort=False)["precision"].mean() for q in enough}
    return Markup(
        "Asked {} for one property, a feature’s top components have it right in <b>{}</b> of "
        "the first {} images{}, on average over {}.{}"
    ).format(
        asked_with[first],
        percent(means[first]["components"], 0),
        k,
        _beside(means[first]),
        _averaged(parts[first]),
        "".join(
            f" Asked {asked_with[query]}: {percent(means[query]['components'], 0)}"
            f"{_beside(means[query])}, over {_averaged(parts[query])}."
            for query in rest
        ),
    )


def _queries(asked: pd.DataFrame) -> int:
    """Queries over all features that were put to a model's components: the fewest of any model."""
    own = asked[asked["method"] == "components"]
    return 0 if own.empty else int(own.groupby("model", sort=False)["queries"].sum().min())


def _averaged(asked: pd.DataFrame) -> str:
    """`5 features of 2 models`: what a mean over the rows stands on."""
    models = asked["model"].nunique()
    of = f" of {plural(models, 'model')}" if models > 1 else ""
    return f"{plural(asked['feature'].nunique(), 'feature')}{of}"


def _beside(means: pd.Series) -> str:
    """The same number of the other methods, in brackets: the best of them among those named."""
    named = {
        "representation": "for the whole representation",
        "clip": "for the reference CLIP",
        "random": "for as many random components",
    }
    shown = [name for name in named if name in means]
    best = means.drop(["components", *shown, "chance"], errors="ignore")
    others = [f"{percent(means[name], 0)} {named[name]}" for name in shown]
    if len(best) and best.max() > means[shown].max():
        words = method_name(str(best.idxmax()))
        others.append(f"{percent(best.max(), 0)} for the next best way, {words}")
    return f" ({', '.join(others)})" if others else ""


def _heatmaps(run: Run) -> Markup | None:
    table = run["heatmaps"].dropna(subset=["mass", "area"])
    if table.empty:
        return None
    ratio = table["mass"].mean() / table["area"].mean()
    return Markup(
        "<b>{}</b> of the positive heat falls on the object, which covers {} of the image: "
        "{} times its share ({})."
    ).format(
        percent(table["mass"].mean(), 0),
        percent(table["area"].mean(), 0),
        decimal(ratio, 1),
        plural(len(table), "map"),
    )


def _segmentation(run: Run) -> Markup | None:
    table = run["segmentation"]
    if table.empty:
        return None
    protocol = "C" if (table["protocol"] == "C").any() else str(table["protocol"].iloc[0])
    value = "miou" if protocol == "C" else "iou_object"
    wide = table[table["protocol"] == protocol].pivot_table(
        index="model", columns="method", values=value, sort=False
    )
    if "decomposition" not in wide:
        return None
    baselines = wide.drop(columns="decomposition")
    wins = int((wide["decomposition"] > baselines.max(axis=1)).sum())
    means = baselines.mean()
    best = f" ({method_name(str(means.idxmax()))}, the best baseline: {percent(means.max(), 0)})"
    verdict = f"they are above every baseline in {wins} of {plural(len(wide), 'model')}"
    if len(wide) == 1:
        verdict = f"they are {'' if wins else 'not '}above every baseline"
    return Markup(
        "Thresholded, the token heat maps segment the object with {} of <b>{}</b> under protocol "
        "{}{}{}; {}."
    ).format(
        "a mean IoU" if value == "miou" else "an IoU",
        percent(wide["decomposition"].mean(), 0),
        protocol,
        on_average(len(wide)),
        best if len(means) else "",
        verdict,
    )


def _spurious(run: Run) -> Markup | None:
    table = run["spurious_summary"]
    worst = table[table["group"] == "worst"].set_index("model")
    ablated = worst[worst["method"] == "ablated"]
    if ablated.empty:
        return None
    test = table[(table["group"] == "test") & (table["method"] == "ablated")]["gain"]
    control = worst.loc[worst["method"] == "random", "gain"]
    extra = []
    if len(test):
        extra.append(f"test accuracy changes by {points(test.mean())}")
    if len(control):
        extra.append(
            f"as many random components change the worst group by {points(control.mean())}"
        )
    gain, spread = ablated["gain"], ""
    if points(gain.min()) != points(gain.max()):
        low, high = gain.idxmin(), gain.idxmax()
        spread = f", from {points(gain[low])} ({low}) to {points(gain[high])} ({high})"
    clear = int(((ablated["gain_low"] > 0) | (ablated["gain_high"] < 0)).sum())
    return Markup(
        "Replacing the {} that score highest for the spurious cue by their means changes the "
        "accuracy of the worst group by <b>{}</b>{}{}; the 95\u202f% interval excludes zero in {} "
        "of {}{}."
    ).format(
        ablated_count(table),
        points(mean(gain.tolist())),
        on_average(len(gain)),
        spread,
        clear,
        plural(len(gain), "model"),
        f"; {listed(extra)}" if extra else "",
    )


def ablated_count(table: pd.DataFrame) -> str:
    """`4 components`, or `2 to 9 components` where their number is chosen for each model."""
    counts = table.loc[table["method"] == "ablated", "components"]
    low, high = int(counts.min()), int(counts.max())
    return plural(high, "component") if low == high else f"{low} to {plural(high, 'component')}"


def _codes(run: Run) -> Markup | None:
    table = run["codes"]
    if table.empty:
        return None
    ends = table.groupby(["model", "image_id"], sort=False).agg(
        texts=("rank", "size"), explained=("explained", "max")
    )
    return Markup(
        "On average {} texts explain <b>{}</b> of an image’s mapped representation ({}{})."
    ).format(
        decimal(ends["texts"].mean(), 1),
        percent(ends["explained"].mean(), 0),
        plural(table["image_id"].nunique(), "image"),
        f", {plural(models, 'model')}" if (models := table["model"].nunique()) > 1 else "",
    )


def _features(run: Run) -> Markup | None:
    table = run["text_features"]
    concepts = table[table["use"] == "concept"] if len(table) else table
    if concepts.empty or is_absent(concepts["feature"].iloc[0]):
        return None
    pool = table[table["use"] == "pool"]
    return Markup("{} of {} and a pool of {} are embedded in {}.").format(
        plural(concepts["text"].nunique(), "concept word"),
        plural(concepts["feature"].nunique(), "feature"),
        plural(pool["text"].nunique(), "text"),
        plural(table["space"].nunique(), "CLIP space"),
    )


def _manifest(run: Run) -> Markup | None:
    table = run["manifest"]
    active = table[table["active"].astype(bool)]
    bad = len(run["rejected"])
    return Markup("<b>{}</b> in {}; {} rejected.").format(
        plural(len(active), "image"),
        plural(active["dataset"].nunique(), "data set"),
        plural(bad, "file was", "files were"),
    )


_TITLES = {
    "manifest": "What went in",
    "features": "Texts and embeddings",
    "contributions": "An exact sum",
    "maps": "From the model to CLIP",
    "scores": "One feature, one head",
    "ablation": "Parts taken out",
    "retrieval": "Search by one property",
    "heatmaps": "Where the heat falls",
    "segmentation": "Objects without training",
    "spurious": "A cue taken out",
    "codes": "Images as texts",
}

_SENTENCES: dict[str, Callable[[Run], Markup | None]] = {
    "manifest": _manifest,
    "features": _features,
    "contributions": _exactness,
    "maps": _maps,
    "scores": _scores,
    "ablation": _ablation,
    "retrieval": _retrieval,
    "heatmaps": _heatmaps,
    "segmentation": _segmentation,
    "spurious": _spurious,
    "codes": _codes,
}
