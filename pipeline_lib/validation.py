"""Scores of components held against what is known of them (`truths`).

`agreement` says how well a score's ranking of the components follows a truth's; `confirmed_table`
whether the component that a score names first is among the best by every truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from pipeline_lib.artifacts import TABLES
from pipeline_lib.intervals import mean_interval
from pipeline_lib.truths import ranks

#: Scores that are held against the truths; `random` deals out the default score at random.
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


@dataclass(frozen=True)
class Agreement:
    """How well a score's ranking of the components follows a truth's.

    Attributes
    ----------
    value
        Spearman correlation over components; the mean over the truth's draws where it has several.
    low, high
        Ends of its 95 % interval, by drawing components, or the truth's draws where it has several.
    top
        Index of the component with the highest score.
    percentile
        Share of components whose truth is not above that component's; 1 where it is the best.
    """

    value: float
    low: float
    high: float
    top: int
    percentile: float


def agreement(
    score: Float[np.ndarray, " c"],
    truth: Float[np.ndarray, "c s"],
    *,
    draws: int,
    seed: int,
    level: float = 0.95,
) -> Agreement:
    """Agreement of a score with a truth of one draw, or of several draws of a control."""
    found = spearman(score, truth)
    generator = np.random.default_rng(seed)
    if len(found) == 1:
        drawn = generator.integers(0, len(score), (draws, len(score)))
        likely = (ranks(score[drawn].T) * ranks(truth[:, 0][drawn].T)).sum(axis=0)
    else:
        likely = found[generator.integers(0, len(found), (draws, len(found)))].mean(axis=1)
    low, high = np.quantile(likely, [(1 - level) / 2, (1 + level) / 2])
    top = int(np.argmax(score))
    return Agreement(
        value=float(found.mean()),
        low=float(low),
        high=float(high),
        top=top,
        percentile=float((truth <= truth[top]).mean()),
    )


def spearman(
    score: Float[np.ndarray, " c"], truth: Float[np.ndarray, "c s"]
) -> Float[np.ndarray, " s"]:
    """Rank correlation with each draw of a truth; 0 where one of the two does not vary.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([[10.0], [40.0], [90.0]])).tolist()
    [1.0]
    """
    product = (ranks(score[:, None]) * ranks(truth)).sum(axis=0)
    return np.clip(np.round(product, 12), -1.0, 1.0)


def validation_table(
    scores: pd.DataFrame, truths: pd.DataFrame, *, images: int, draws: int, seed: int
) -> pd.DataFrame:
    """Rows of table `validation`, without model and data set.

    Parameters
    ----------
    scores, truths
        Rows of tables `scores` and `truth` of one model.
    images
        Number of images that the truths were measured on.
    draws
        Draws of the intervals.
    seed
        Of the draws, and of the control `random`: scores dealt to the components at random.

    Notes
    -----
    Components that are constant (the bias) are left out. Across components: for each feature, the
    components are ranked by score and by truth; the row without a feature is the mean over
    features. Across features: for each component its features are, and the correlations are
    averaged over components (P2).
    """
    varying = scores.groupby("component")["variance_explained"].max()
    kept = varying.index[varying > 0]
    named = scores.drop_duplicates("component").set_index("component")["id"]
    rows = []
    for truth in TRUTHS:
        features, known = _values(truths, truth, kept)
        if not features:
            continue
        for column in SCORES:
            found = _scores(scores, column, kept, features, seed)
            pairs = list(zip(found.T, known.transpose(1, 0, 2), strict=True))
            each = [agreement(*pair, draws=draws, seed=seed) for pair in pairs]
            for feature, one in zip(features, each, strict=True):
                top = named[kept[one.top]]
                value = (one.value, one.low, one.high, one.percentile, str(top))
                rows.append((truth, "components", feature, column, *value))
            over = {"components": [spearman(*pair).mean() for pair in pairs]}
            if len(features) > 2:
                each_row = zip(found, known, strict=True)
                over["features"] = [spearman(*pair).mean() for pair in each_row]
            for across, values in over.items():
                low, high = mean_interval(np.array(values), draws=draws, seed=seed)
                mean = float(np.mean(values))
                rows.append((truth, across, "", column, mean, low, high, np.nan, ""))
    columns = ["truth", "across", "feature", "score", "value", "low", "high", "percentile", "top"]
    return pd.DataFrame(rows, columns=columns).assign(n=images)


def _values(
    truths: pd.DataFrame, column: str, kept: pd.Index
) -> tuple[list[str], Float[np.ndarray, "c f s"]]:
    """Features of which a truth is known, and its values (or draws of values)."""
    known = truths[truths[column].notna() & truths["component"].isin(kept)]
    features = list(dict.fromkeys(known["feature"]))
    ordered = known.sort_values("component", kind="stable")
    values = [np.stack(ordered.loc[ordered["feature"] == f, column].tolist()) for f in features]
    if not features:
        return [], np.zeros((len(kept), 0, 1))
    return features, np.stack(values, axis=1).reshape(len(kept), len(features), -1)


def _scores(
    scores: pd.DataFrame, column: str, kept: pd.Index, features: Sequence[str], seed: int
) -> Float[np.ndarray, "c f"]:
    dealt = column == "random"
    wide = scores.pivot(
        index="component", columns="feature", values="score" if dealt else column
    ).loc[kept, list(features)]
    found = wide.to_numpy()
    return np.random.default_rng(seed).permuted(found, axis=0) if dealt else found


def confirmed_table(scores: pd.DataFrame, truths: pd.DataFrame) -> pd.DataFrame:
    """Rows of table `confirmed`, without model and data set: known factors, by each of `NAMING`.

    The component with the highest score is confirmed where it is in the top decile of both truths
    of a pair of `VERDICTS`: fewer than a tenth of the components have a larger one, and the median
    component has a smaller one. Ablation alone cannot confirm where a factor is carried by several
    components: then no single one is missed. `candidates` (and so on) counts the components that
    both truths would confirm; where there is none, no score could be confirmed.
    """
    rows = []
    for feature, part in scores.groupby("feature", sort=False):
        part = part[part["variance_explained"] > 0]
        known = truths[truths["feature"] == feature].set_index("component")
        if known[list(CONFIRMING)].isna().any(axis=None):
            continue
        measured = known.loc[part["component"], list(CONFIRMING)]
        for by in NAMING:
            place = int(part[by].to_numpy().argmax())
            fact = {"feature": feature, "by": by, "top": part["id"].iloc[place]}
            fact |= {"score": float(part[by].iloc[place]), "components": len(part)}
            rows.append(fact | _verdicts(measured, part["id"].tolist(), place))
    declared = [column.name for column in TABLES["confirmed"].columns]
    return pd.DataFrame(rows, columns=[name for name in declared if name not in _OF_RUN])


def _verdicts(measured: pd.DataFrame, ids: Sequence[str], place: int) -> dict[str, object]:
    """Where the component at `place` stands in each truth, and which truths confirm it."""
    fact: dict[str, object] = {}
    among = {}
    for truth in CONFIRMING:
        values = measured[truth].to_numpy()
        percentiles = (values[:, None] >= values).mean(axis=1)
        median = float(np.median(values))
        among[truth] = (percentiles > DECILE) & (values > median)
        fact |= {f"{truth}_value": float(values[place]), f"{truth}_median": median}
        fact[f"{truth}_percentile"] = float(percentiles[place])
        fact[f"{truth}_best"] = ids[int(np.argmax(values))]
    for end, (one, other) in VERDICTS.items():
        both = among[one] & among[other]
        fact[f"confirmed{end}"] = bool(both[place])
        fact[f"candidates{end}"] = int(both.sum())
    return fact
