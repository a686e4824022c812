"""The role of a component: the category of texts that most of its label speaks of.

Works on table `labels`, whose texts carry the categories of their pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import false_discovery_control

from pipeline_lib.errors import DataError
from pipeline_lib.scores import Moments
from pipeline_lib.significance import DRAWS_EACH, p_values
from pipeline_lib.textspan import component_variances

NO_ROLE = "no clear role"
#: What stands for a role where the pool has one category, so that none can be told.
ONE_CATEGORY = "texts of one category"
#: A role is named when this share of such roles is chance at most, and it is ahead by this share.
Q_VALUE, MARGIN = 0.05, 0.1


def role_table(
    labels: pd.DataFrame, found: Moments, pool_categories: Sequence[str], *, draws: int, seed: int
) -> pd.DataFrame:
    """Rows of table `roles`, without model and data set: one per component that has a label.

    Parameters
    ----------
    labels
        Rows of table `labels` of one model.
    found
        Moments that the labels were made of, for the effective rank.
    pool_categories
        Category of every text of the pool.
    draws
        Times the categories are shuffled over the pool for the p-value, at least; there are
        `DRAWS_EACH` for each component.
    seed
        Of the shuffling.

    Notes
    -----
    The share of a category is its texts' share of the variance that the label explains. The
    p-value is the share of shuffles in which some category has at least as large a share: a
    category with many texts in the pool is expected more often. The q-value is that p-value
    corrected for the number of components (Benjamini and Hochberg 1995); it decides. From a pool of
    one category no role can be told: `ONE_CATEGORY` stands for all.
    """
    names, codes = np.unique(np.asarray(pool_categories), return_inverse=True)
    unknown = sorted(set(labels["category"]) - set(names))
    if unknown:
        raise DataError(
            f"labels have categories that the pool has not, for example {unknown[0]!r}: they were "
            "made from another pool; run snakemake again"
        )
    texts = labels.groupby("component").size()
    draws = max(draws, DRAWS_EACH * len(texts))
    dealt = dealt_categories(codes, int(texts.max()) if len(texts) else 0, draws, seed)
    rows: list[dict[str, Any]] = []
    for component, label in labels.groupby("component"):
        gains = label["variance"].to_numpy()
        own = np.searchsorted(names, label["category"].to_numpy())
        shares = category_shares(gains, own[None], len(names))[0]
        order = np.argsort(-shares, kind="stable")
        first, second = order[0], order[1] if len(order) > 1 else None
        ahead = shares[first] - (shares[second] if second is not None else 0.0)
        chance = category_shares(gains, dealt[:, : len(gains)], len(names)).max(axis=1)
        facts = label.iloc[0][["component", "id", "kind", "layer", "head"]].to_dict()
        variances = component_variances(found, int(component))
        rows.append(
            facts
            | {
                "role": str(names[first]),
                "share": float(shares[first]),
                "margin": float(ahead),
                "p_value": float(p_values(shares[[first]] - 1e-12, chance[:, None])[0]),
                "q_value": np.nan,
                "texts_in_role": int((own == first).sum()),
                "texts": len(gains),
                "entropy": entropy(shares) / max(np.log(len(names)), 1e-12),
                "effective_rank": float(np.exp(entropy(variances / variances.sum()))),
            }
        )
    columns = ["component", "id", "kind", "layer", "head", "role", "share", "margin", "p_value"]
    columns += ["q_value", "texts_in_role", "texts", "entropy", "effective_rank"]
    table = pd.DataFrame(rows, columns=columns)
    if table.empty:
        return table
    table["q_value"] = false_discovery_control(table["p_value"])
    clear = (table["q_value"] <= Q_VALUE) & (table["margin"] >= MARGIN)
    return table.assign(
        role=table["role"].where(clear, NO_ROLE if len(names) > 1 else ONE_CATEGORY)
    )


def dealt_categories(
    codes: Int[np.ndarray, " k"], texts: int, draws: int, seed: int
) -> Int[np.ndarray, "w s"]:
    """Categories of as many texts as a label has, drawn from the pool without replacement.

    The first texts of a draw are such a draw of fewer texts: one serves labels of any length.
    """
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(codes, size=texts, replace=False) for _ in range(draws)]
    return np.stack(drawn) if draws else np.zeros((0, texts), dtype=int)


def category_shares(
    gains: Float[np.ndarray, " s"], categories: Int[np.ndarray, "w s"], count: int
) -> Float[np.ndarray, "w v"]:
    """Share of `gains` in each of `count` categories, for each assignment of texts to them."""
    shares = np.zeros((len(categories), count))
    rows = np.arange(len(categories))[:, None]
    np.add.at(shares, (rows, categories), np.broadcast_to(gains, categories.shape))
    return shares / gains.sum()


def entropy(shares: Float[np.ndarray, " v"]) -> float:
    """Entropy of shares that sum to 1, in nats.

    >>> round(entropy(np.array([0.5, 0.5, 0.0])), 6)
    0.693147
    """
    present = shares[shares > 0]
    return float(-(present * np.log(present)).sum())
