"""Scores of components held against what is known of them (`truths`).

`validation_table` says how well a score's ranking of the components follows a truth's;
`confirmed_table` whether the component that a score names first is among the best by both truths of
a pair. Intervals are over images: scores and truths are taken from the same redraws of them (table
`redraws`). Axis letters: `c` component, `f` feature, `p` redraw, shuffle or deal.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from pipeline_lib.artifacts import TABLES
from pipeline_lib.redraws import spread_interval
from pipeline_lib.truths import ranks

#: Scores that are held against the truths; `random`: the default one dealt to components at random.
SCORES = ("score", "score_published", "variance_explained", "random")
#: Truths, in the order of the tables.
TRUTHS = (
    "decodability", "decodability_in_words", "ablation_loss", "joint_loss", "margin_loss",
    "clip", "clip_shuffled",
)  # fmt: skip
#: Columns of table `confirmed` that the rule adds.
_OF_RUN = ("model", "dataset")
#: Scores whose first component is looked at.
NAMING = ("score", "score_published")
#: Truths that can confirm a component, and the place that it must reach among all.
CONFIRMING, DECILE = ("decodability", "ablation_loss", "joint_loss", "decodability_in_words"), 0.9
#: End of a column's name to the two truths that confirm a component so.
VERDICTS = {
    "": ("decodability", "ablation_loss"),
    "_jointly": ("decodability", "joint_loss"),
    "_in_words": ("decodability_in_words", "joint_loss"),
}


def spearman(
    one: Float[np.ndarray, "p c f"], other: Float[np.ndarray, "p c f"], axis: int
) -> Float[np.ndarray, "p *s"]:
    """Rank correlation along an axis; 0 where one of the two does not vary along it.

    >>> one, other = np.array([[[1.0], [2.0], [3.0]]]), np.array([[[10.0], [40.0], [90.0]]])
    >>> spearman(one, other, axis=1).tolist()
    [[1.0]]
    """
    moved = [np.moveaxis(values, axis, 0) for values in (one, other)]
    first, second = (ranks(values.reshape(len(values), -1)) for values in moved)
    found = (first * second).sum(axis=0).reshape(moved[0].shape[1:])
    return np.clip(np.round(found, 12), -1.0, 1.0)


def validation_table(
    scores: pd.DataFrame,
    truths: pd.DataFrame,
    redraws: pd.DataFrame,
    *,
    images: int,
    deals: int,
    seed: int,
) -> pd.DataFrame:
    """Rows of table `validation`, without model and data set.

    Parameters
    ----------
    scores, truths, redraws
        Rows of tables `scores`, `truth` and `redraws` of one model.
    images
        Number of images that the truths were measured on.
    deals
        Times that scores are dealt to the components at random for the control `random`.
    seed
        Of the deals.

    Notes
    -----
    Components that are constant (the bias) are left out. Across components: for each feature, the
    components are ranked by score and by truth; the row without a feature is the mean over
    features. Across features: for each component its features are, and the correlations are
    averaged over components (P2).
    """
    varying = scores.groupby("component")["variance_explained"].max()
    kept = varying.index[varying > 0]
    named = scores.drop_duplicates("component").set_index("component").loc[kept, "id"].to_numpy()
    rows: list[tuple[object, ...]] = []
    for truth in TRUTHS:
        known = truths[truths[truth].notna() & truths["component"].isin(kept)]
        features = list(dict.fromkeys(known["feature"]))
        if not features:
            continue
        measured = _wide(known, truth, kept, features)
        shuffled = truth == "clip_shuffled"
        again = measured[:0] if shuffled else _wide(redraws, truth, kept, features)
        for column in SCORES:
            dealt = column == "random"
            one = _wide(scores, "score" if dealt else column, kept, features)
            if dealt:
                pair = _dealt(one, deals, seed), measured[np.arange(deals) % len(measured)]
            elif shuffled:
                pair = np.broadcast_to(one, measured.shape), measured
            else:
                drawn = _wide(redraws, column, kept, features)
                pair = np.concatenate([one, drawn]), np.concatenate([measured, again])
            control = dealt or shuffled
            rows += [(truth, *row) for row in _rows(column, features, named, pair, control)]
    columns = ["truth", "across", "feature", "score", "value", "low", "high", "percentile", "top"]
    return pd.DataFrame(rows, columns=columns).assign(n=images)


def _rows(
    column: str,
    features: Sequence[str],
    named: Sequence[str],
    pair: tuple[Float[np.ndarray, "p c f"], Float[np.ndarray, "p c f"]],
    control: bool,
) -> Iterator[tuple[object, ...]]:
    """Agreement of a score with a truth, feature by feature, and the means.

    All draws of a control are alike; otherwise the first is the images themselves, the others
    redraws of them.
    """
    one, other = pair
    ends = _middle if control else _errors
    between = spearman(one, other, axis=1)
    for place, feature in enumerate(features):
        seen = slice(None) if control else slice(1)
        top, truth = one[seen, :, place].argmax(axis=1), other[seen, :, place]
        at_top = np.take_along_axis(truth, top[:, None], axis=1)
        percentile = (truth <= at_top).mean(axis=1)
        first = "" if column == "random" else named[top[0]]
        found = ends(between[:, place])
        yield "components", feature, column, *found, float(percentile.mean()), str(first)
    yield "components", "", column, *ends(between.mean(axis=1)), np.nan, ""
    if len(features) > 2:
        within = spearman(one, other, axis=2).mean(axis=1)
        yield "features", "", column, *ends(within), np.nan, ""


def _errors(found: Float[np.ndarray, " p"]) -> tuple[float, float, float]:
    """What was found on the images, and its interval from what was on redraws of them."""
    low, high = spread_interval(found[0], found[1:])
    return float(found[0]), max(float(low), -1.0), min(float(high), 1.0)


def _middle(found: Float[np.ndarray, " p"]) -> tuple[float, float, float]:
    """Mean of a control, and the middle 95 % of it."""
    low, high = np.quantile(found, (0.025, 0.975))
    return float(found.mean()), float(low), float(high)


def _wide(
    table: pd.DataFrame, column: str, kept: pd.Index, features: Sequence[str]
) -> Float[np.ndarray, "p c f"]:
    """A column of numbers (one `p`) or of lists of them, by component and feature."""
    found = table.set_index(["component", "feature"])[column]
    index = pd.MultiIndex.from_product([kept, features])
    values = np.stack([np.atleast_1d(value) for value in found.loc[index]]).astype(float)
    return np.moveaxis(values.reshape(len(kept), len(features), -1), 2, 0)


def _dealt(scores: Float[np.ndarray, "1 c f"], deals: int, seed: int) -> Float[np.ndarray, "p c f"]:
    """Each feature's scores dealt to the components at random."""
    many = np.repeat(scores, deals, axis=0)
    return np.random.default_rng(seed).permuted(many, axis=1)


def confirmed_table(
    scores: pd.DataFrame, truths: pd.DataFrame, redraws: pd.DataFrame
) -> pd.DataFrame:
    """Rows of table `confirmed`, without model and data set: known factors, by each of `NAMING`.

    The component with the highest score is confirmed where it is in the top decile of both truths
    of a pair of `VERDICTS`: fewer than a tenth of the components have a larger one, and the median
    component has a smaller one. Ablation alone cannot confirm where a factor is carried by several
    components: then no single one is missed. `candidates` (and so on) counts the components that
    both truths would confirm; where there is none, no score could be confirmed. `confirmed_share`
    is how often the first component of a redraw of the images is confirmed by the truths there.
    """
    rows = []
    for feature, part in scores.groupby("feature", sort=False):
        part = part[part["variance_explained"] > 0]
        known = truths[truths["feature"] == feature].set_index("component")
        if known[list(CONFIRMING)].isna().any(axis=None):
            continue
        again = redraws[redraws["feature"] == feature].set_index("component")
        measured = {
            truth: np.concatenate(
                [
                    known.loc[part["component"], [truth]].to_numpy(dtype=float).T,
                    np.stack(again.loc[part["component"], truth]).T,
                ]
            )
            for truth in CONFIRMING
        }
        for by in NAMING:
            drawn = np.stack(again.loc[part["component"], by]).T
            first = np.concatenate([part[by].to_numpy()[None], drawn]).argmax(axis=1)
            fact = {"feature": feature, "by": by, "top": part["id"].iloc[first[0]]}
            fact |= {"score": float(part[by].iloc[first[0]]), "components": len(part)}
            rows.append(fact | _verdicts(measured, part["id"].tolist(), first))
    declared = [column.name for column in TABLES["confirmed"].columns]
    return pd.DataFrame(rows, columns=[name for name in declared if name not in _OF_RUN])


def _verdicts(
    measured: Mapping[str, Float[np.ndarray, "p c"]],
    ids: Sequence[str],
    first: Int[np.ndarray, " p"],
) -> dict[str, object]:
    """Where the first component stands in each truth, and which truths confirm it.

    The first row is of the images themselves, the others are of redraws.
    """
    fact: dict[str, object] = {}
    place = first[0]
    for truth, values in measured.items():
        low, high = spread_interval(values[0, place], values[1:, place])
        fact |= {
            f"{truth}_value": float(values[0, place]),
            f"{truth}_low": float(low),
            f"{truth}_high": float(high),
            f"{truth}_percentile": float((values[0] <= values[0, place]).mean()),
            f"{truth}_median": float(np.median(values[0])),
            f"{truth}_best": ids[int(values[0].argmax())],
        }
    among = {truth: _top_decile(values) for truth, values in measured.items()}
    for end, (one, other) in VERDICTS.items():
        both = among[one] & among[other]
        verdicts = both[np.arange(len(first)), first]
        fact[f"confirmed{end}"] = bool(verdicts[0])
        fact[f"confirmed{end}_share"] = float(verdicts[1:].mean())
        fact[f"candidates{end}"] = int(both[0].sum())
    return fact


def _top_decile(values: Float[np.ndarray, "p c"]) -> Bool[np.ndarray, "p c"]:
    """Components that fewer than a tenth have more than, and the median one has less than."""
    percentiles = (values[:, :, None] >= values[:, None, :]).mean(axis=2)
    return (percentiles > DECILE) & (values > np.median(values, axis=1, keepdims=True))
