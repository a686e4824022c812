"""Several models side by side: where each feature lives, and which components vary alike.

Works on tables of scores, and on how alike components find the same images, so that models of
different widths and spaces can be compared. Axis letters: `n` image, `c` component, `d` model
width, `p` pair of images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from pipeline_lib.maps import Maps
from pipeline_lib.redraws import spread_interval
from pipeline_lib.significance import carriers

if TYPE_CHECKING:
    from pipeline_lib.dumps import Dump

#: Reads contributions of some components, by number.
Read = Callable[[Sequence[int]], Float[np.ndarray, "n b d"]]

#: Images over which components are compared, and how many neighbouring ones are read at once.
COMPARED, _RUN = 400, 50
#: Images that the comparison of components needs at least.
FEWEST = 8
_BATCH_BYTES = 128 * 2**20
_MLPS = ("mlp", "conv")
#: Share of a feature's positive scores whose number of components is counted.
CARRIED = 0.9


def comparison_table(scores: pd.DataFrame, redraws: pd.DataFrame | None = None) -> pd.DataFrame:
    """Rows of table `comparison` from tables `scores` of several models, one below another.

    A component's depth is its layer over the largest layer of its model; the stem is at 0. Depths
    are weighted by the positive scores, and `carriers` are those with most of them. The bias is
    left out.

    Parameters
    ----------
    scores
        Tables `scores`.
    redraws
        Tables `redraws` of the same models: both are taken from every redraw of the images, too.
        Without them intervals are missing.
    """
    rows, keys = [], ["model", "dataset", "feature"]
    drawn = None if redraws is None else dict(list(redraws.groupby(keys, sort=False)))
    for key, part in scores.groupby(keys, sort=False):
        part = part[part["kind"] != "bias"]
        values = part["score"].to_numpy()
        weight = _weights(values)
        depth = (part["layer"].clip(lower=0) / max(int(part["layer"].max()), 1)).to_numpy()
        mean, count = float(weight @ depth), carriers(values.tolist(), CARRIED)
        first = part.loc[part["score"].idxmax()]
        redrawn = _redrawn(None if drawn is None else drawn[key], part["component"])
        rows.append(
            {
                **dict(zip(keys, key, strict=True)),
                "depth": mean,
                "depth_spread": float(np.sqrt(weight @ (depth - mean) ** 2)),
                "carriers": count,
                "carriers_share": count / len(part),
                "components": len(part),
                "top": first["id"],
                "top_score": float(first["score"]),
                "heads": float(weight[(part["kind"] == "head").to_numpy()].sum()),
                "mlps": float(weight[part["kind"].isin(_MLPS).to_numpy()].sum()),
                **_intervals(mean, count, depth, redrawn),
            }
        )
    return pd.DataFrame(rows)


def _weights(values: Float[np.ndarray, "*w c"]) -> Float[np.ndarray, "*w c"]:
    """Positive scores over their sum."""
    positive = np.clip(values, 0, None)
    return positive / np.maximum(positive.sum(axis=-1, keepdims=True), 1e-300)


def _redrawn(redraws: pd.DataFrame | None, components: pd.Series) -> Float[np.ndarray, "w c"]:
    """Scores of some components in every redraw."""
    if redraws is None:
        return np.zeros((0, len(components)))
    lists = redraws.set_index("component")["score"].loc[components]
    return np.stack(lists.to_list(), axis=1).astype(float)


def _intervals(
    depth: float, count: int, depths: Float[np.ndarray, " c"], redrawn: Float[np.ndarray, "w c"]
) -> dict[str, float]:
    """Ends of the intervals of the depth and of the number of carriers, within what they can be."""
    if not len(redrawn):
        return dict.fromkeys(("depth_low", "depth_high", "carriers_low", "carriers_high"), np.nan)
    counts = [carriers(values, CARRIED) for values in redrawn.tolist()]
    both = np.stack([_weights(redrawn) @ depths, np.array(counts, dtype=float)], axis=1)
    low, high = spread_interval(np.array([depth, count], dtype=float), both)
    low, high = np.maximum(low, (0, 1)), np.minimum(high, (1, len(depths)))
    names = ("depth_low", "carriers_low", "depth_high", "carriers_high")
    return dict(zip(names, (*low.tolist(), *high.tolist()), strict=True))


def compared_images(count: int) -> Int[np.ndarray, " n"]:
    """Positions of the images over which components are compared: at most 400, in even runs.

    Runs, because scattered images of a store are slow to read.
    """
    if count <= COMPARED:
        return np.arange(count)
    starts = np.linspace(0, count - _RUN, COMPARED // _RUN).astype(int)
    return np.unique(np.concatenate([np.arange(start, start + _RUN) for start in starts]))


def compared_contributions(dump: Dump, maps: Maps | None) -> Read:
    """Reads contributions to the images compared, run by run; mapped, where maps are given."""
    index = compared_images(dump.n)
    runs = np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)

    def read(components: Sequence[int]) -> Float[np.ndarray, "n b d"]:
        values = np.concatenate([dump.contributions(run, list(components)) for run in runs])
        if maps is None:
            return values
        return maps.only(components).apply(torch.from_numpy(values)).numpy()

    return read


def patterns(read: Read, components: int, width: int) -> Float[np.ndarray, "c p"]:
    """How alike each component finds every two images, as unit vectors whose products are CKA.

    Parameters
    ----------
    read
        Mapped contributions of some components, by number, to the images compared.
    components, width
        Number of components of the model, and the width of what is read, or of more.

    Returns
    -------
    numpy.ndarray
        One vector over pairs of images for each component; zero where nothing varies.

    Notes
    -----
    Linear CKA (Kornblith et al., ICML 2019) with the unbiased estimator of HSIC (Song et al., JMLR
    2012): 1 for equal geometry up to turning and scaling, 0 on average for none. So it compares
    what was mapped to the spaces of two CLIP models, whose axes are not the same.
    """
    step = max(1, _BATCH_BYTES // (4 * COMPARED * width))
    found = []
    for start in range(0, components, step):
        values = read(range(start, min(start + step, components)))
        values = values - values.mean(axis=0)
        found += [_pattern(values[:, place].astype(np.float64)) for place in range(values.shape[1])]
    return np.stack(found)


def _pattern(part: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " p"]:
    gram, scale = part @ part.T, np.square(part).sum()
    np.fill_diagonal(gram, 0.0)
    count = len(gram)
    rows = gram.sum(axis=0) / (count - 2)
    gram = gram - rows[:, None] - rows[None, :] + gram.sum() / ((count - 1) * (count - 2))
    np.fill_diagonal(gram, 0.0)
    size = np.linalg.norm(gram)
    varies = scale > 1e-20 and size > 1e-12 * scale
    return (gram / size if varies else np.zeros_like(gram)).ravel().astype(np.float32)


def similarity_table(
    seen: Mapping[str, Float[np.ndarray, "c p"]], names: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Rows of table `similarity`, without data set: every two components of each model, once.

    Constant components have no row. Parameters as of `counterpart_table`.
    """
    parts = []
    for model, own in seen.items():
        ids, varying = np.asarray(names[model], dtype=object), np.flatnonzero(own.any(axis=1))
        first, second = np.triu_indices(len(varying), k=1)
        one, other = varying[first], varying[second]
        columns = {"component": one, "id": ids[one], "other_component": other}
        columns |= {"other_id": ids[other], "similarity": (own @ own.T)[one, other]}
        parts.append(pd.DataFrame(columns).assign(model=model))
    kinds = {"component": "int64", "other_component": "int64", "similarity": "float64"}
    found = pd.concat(parts) if parts else pd.DataFrame(columns=["model", "id", "other_id", *kinds])
    return found.astype(kinds)


def counterpart_table(
    seen: Mapping[str, Float[np.ndarray, "c p"]], names: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Rows of table `counterparts`, without data set, for every ordered pair of models.

    Within a model, the most alike among the *other* components. Constant components have no row.

    Parameters
    ----------
    seen
        Model to its `patterns` over the same images.
    names
        Model to the ids of its components.
    """
    rows = []
    for model, own in seen.items():
        for other, values in seen.items():
            alike = own @ values.T
            if other == model:
                np.fill_diagonal(alike, -np.inf)
            for component in np.flatnonzero(own.any(axis=1)).tolist():
                best = int(alike[component].argmax())
                facts = (model, component, names[model][component], other, best)
                rows.append((*facts, names[other][best], float(alike[component, best])))
    columns = ["model", "component", "id", "other_model", "other_component", "other_id"]
    return pd.DataFrame(rows, columns=[*columns, "similarity"])
