"""Scores of components held against what is known: CLIP's own ranking, and the true factors.

Truths, each a number per component and feature: `decodability`, how well the factor is read off
the component alone; `ablation_loss` and `margin_loss`, what replacing the component by its mean
costs a reader of the whole; `clip`, how alike the component and the reference CLIP rank the images
for the feature's descriptors. `agreement` says how well a score's ranking of the components follows
a truth's. Axis letters: `c` component, `f` factor or feature, `r` coordinates of all components,
`v` value of a factor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.errors import DataError
from pipeline_lib.scores import Moments

#: Folds of the cross-validation of linear readers.
FOLDS = 5
#: Ridge of linear readers, relative to the mean variance of a coordinate.
RIDGE = 1e-3

_CHUNK = 1024


@dataclass(frozen=True)
class Factors:
    """Known factors of the images, as numbers.

    Attributes
    ----------
    names
        Factors.
    codes
        Value of each factor of each image, as a number from 0 `[n, f]`.
    counts
        Number of values of each factor.
    """

    names: tuple[str, ...]
    codes: Int[np.ndarray, "n f"]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, images: pd.DataFrame, names: Sequence[str]) -> Factors:
        """Factors from the columns `names` of a manifest.

        Raises
        ------
        DataError
            A column has missing values or one value only.
        """
        problems = [f"{n!r} has missing values" for n in names if images[n].isna().any()]
        problems += [f"{n!r} has one value only" for n in names if images[n].nunique() < 2]
        if problems:
            raise DataError(f"factors of the images: {'; '.join(problems)}")
        columns = [pd.factorize(images[name], sort=True)[0] for name in names]
        codes = np.stack(columns, axis=1) if columns else np.zeros((len(images), 0), dtype=int)
        return cls(tuple(names), codes, tuple(int(column.max()) + 1 for column in columns))

    @property
    def slices(self) -> list[slice]:
        """Columns of the one-hot code that belong to each factor."""
        ends = np.cumsum((0, *self.counts))
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    def one_hot(self) -> Float[Tensor, "n v"]:
        """One column per value of each factor, 1 where the image has it."""
        blocks = [np.eye(k)[self.codes[:, i]] for i, k in enumerate(self.counts)]
        return torch.from_numpy(np.concatenate(blocks, axis=1))

    def correct(self, logits: Float[Tensor, "m v"], index: np.ndarray) -> Float[np.ndarray, " f"]:
        """Number of right predictions of each factor."""
        found = [logits[:, columns].argmax(dim=1).numpy() for columns in self.slices]
        return (np.stack(found, axis=1) == self.codes[index]).sum(axis=0).astype(float)

    def margins(self, logits: Float[Tensor, "m v"], index: np.ndarray) -> Float[np.ndarray, " f"]:
        """Sum over images of the true value's logit less the mean logit of the factor."""
        found = []
        for factor, columns in enumerate(self.slices):
            values = logits[:, columns]
            true = values[torch.arange(len(index)), torch.from_numpy(self.codes[index, factor])]
            found.append(float((true - values.mean(dim=1)).sum()))
        return np.array(found)


def decodability(
    encoded: Encoded, factors: Factors, *, seed: int
) -> tuple[Float[np.ndarray, "c f"], Float[np.ndarray, "c f"]]:
    """How well a linear reader tells each factor from each component alone: R² and accuracy.

    Ridge regression on the one-hot code, measured on images that the reader was not fitted on
    (cross-validation over `FOLDS`). R² is the share of the code's variance that is read; unlike
    accuracy it still tells components apart that are always right.
    """
    right = np.zeros((len(encoded.bases.vectors), len(factors.names)))
    wanted = factors.one_hot()
    missed = np.zeros_like(right)
    for component, columns in enumerate(encoded.bases.slices):
        rows = torch.from_numpy(np.ascontiguousarray(encoded.values[:, columns])).double()
        for train, test in _folds(len(rows), seed):
            reader, offset = _reader(rows[train], wanted[train])
            read = rows[test] @ reader + offset
            right[component] += factors.correct(read, test)
            squares = (wanted[test] - read).square().sum(dim=0)
            missed[component] += [float(squares[s].sum()) for s in factors.slices]
    spread = (wanted - wanted.mean(dim=0)).square().sum(dim=0)
    total = np.array([float(spread[s].sum()) for s in factors.slices])
    return 1 - missed / total, right / len(encoded)


def ablation_loss(
    encoded: Encoded, factors: Factors, *, seed: int
) -> tuple[Float[np.ndarray, "c f"], Float[np.ndarray, "c f"], Float[np.ndarray, " f"]]:
    """What a reader of the representation loses when a component is replaced by its mean.

    A linear reader is fitted on the whole representation and applied to images that it was not
    fitted on, with one component after another mean-ablated (cross-validation over `FOLDS`).

    Returns
    -------
    tuple
        Loss of accuracy `[c, f]`; loss of the margin between the true value and the mean of all
        `[c, f]`, which still tells components apart where accuracy stays perfect; both negative
        where ablation helps. Accuracy `[f]` with nothing ablated.
    """
    bases, wanted = encoded.bases, factors.one_hot()
    summing = bases.project(torch.eye(bases.width).expand(len(bases.vectors), -1, -1)).double()
    whole = torch.cat([encoded.rows(part).double() @ summing for part in _parts(len(encoded))])
    right = np.zeros((len(bases.vectors), len(factors.names)))
    margin = np.zeros_like(right)
    full = np.zeros(len(factors.names))
    for train, test in _folds(len(encoded), seed):
        reader, offset = _reader(whole[train], wanted[train])
        logits = whole[test] @ reader + offset
        full += factors.correct(logits, test)
        mean = torch.from_numpy(encoded.values[train].mean(axis=0)).double()
        centred = encoded.rows(test).double() - mean
        through = summing @ reader
        for component, columns in enumerate(bases.slices):
            removed = centred[:, columns] @ through[columns]
            right[component] += factors.correct(logits - removed, test)
            margin[component] += factors.margins(removed, test)
    count = len(encoded)
    return (full - right) / count, margin / count, full / count


def clip_agreement(
    encoded: Encoded,
    found: Moments,
    images: Float[Tensor, "n e"],
    features: Mapping[str, Float[Tensor, "k e"]],
) -> Float[np.ndarray, "c f"]:
    """How alike each component and the reference CLIP rank the images for each feature.

    Spearman correlation over images between the mapped component and CLIP's image embedding, each
    times a descriptor; mean over the descriptors of the feature. Zero where a component is
    constant.

    Parameters
    ----------
    images
        CLIP embeddings of the images, in the order of `encoded`; in a shuffled order the result
        is a control that must come out near 0.

    Notes
    -----
    P2 (validation of CompAttribute). P2's script compares two different orders of images; here
    they are the same.
    """
    result = np.zeros((len(encoded.bases.vectors), len(features)))
    for place, descriptors in enumerate(features.values()):
        reading = (found.blocks @ descriptors.double().T).float()
        target = _ranks((images @ descriptors.T).numpy())
        for component, columns in enumerate(encoded.bases.slices):
            rows = torch.from_numpy(np.ascontiguousarray(encoded.values[:, columns]))
            own = _ranks((rows @ reading[columns]).numpy())
            result[component, place] = np.mean((own * target).sum(axis=0))
    return result


def truth_table(encoded: Encoded, factors: Factors, *, seed: int) -> pd.DataFrame:
    """Rows of table `truth`, without model, data set and facts on the components."""
    read, accuracy = decodability(encoded, factors, seed=seed)
    loss, margin, _ = ablation_loss(encoded, factors, seed=seed)
    values = {
        "decodability": read,
        "accuracy": accuracy,
        "ablation_loss": loss,
        "margin_loss": margin,
    }
    count = len(encoded.bases.vectors)
    parts = [
        pd.DataFrame({"feature": name, "component": np.arange(count)}).assign(
            **{key: value[:, place] for key, value in values.items()}
        )
        for place, name in enumerate(factors.names)
    ]
    return pd.concat(parts, ignore_index=True)


def validation_table(
    scores: pd.DataFrame,
    truths: Mapping[str, pd.DataFrame],
    *,
    images: int,
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """Rows of table `validation`, without model and data set.

    Parameters
    ----------
    scores
        Rows of table `scores` of one model.
    truths
        Name of a truth to its values: index component, one column per feature.
    images
        Number of images that the truths were measured on.
    draws
        Draws of the intervals.
    seed
        Of the draws, and of the control `random`: scores dealt to the components at random.

    Notes
    -----
    Components that are constant (the bias) are left out. Across components: for each feature, the
    components are ranked by score and by truth. Across features: for each component its features
    are, and the correlations are averaged over components (P2).
    """
    generator = np.random.default_rng(seed)
    varying = scores.groupby("component")["variance_explained"].max()
    kept = varying.index[varying > 0]
    named = scores.drop_duplicates("component").set_index("component")["id"]
    rows = []
    for truth, values in truths.items():
        features = [name for name in scores["feature"].unique() if name in values]
        known = values.loc[kept, features].to_numpy()
        for column in ("score", "score_published", "variance_explained", "random"):
            wide = scores.pivot(
                index="component",
                columns="feature",
                values="score" if column == "random" else column,
            )
            found = wide.loc[kept, features].to_numpy()
            if column == "random":
                found = generator.permuted(found, axis=0)
            for place, feature in enumerate(features):
                measured = agreement(found[:, place], known[:, place], draws=draws, seed=seed)
                top = named[kept[int(np.argmax(found[:, place]))]]
                rows.append((truth, "components", feature, column, *measured.values(), top))
            if len(features) > 2:
                within = [spearman(*pair) for pair in zip(found, known, strict=True)]
                low, high = _mean_interval(np.array(within), draws, seed)
                rows.append(
                    (truth, "features", "", column, float(np.mean(within)), low, high, 0.0, "")
                )
    columns = ["truth", "across", "feature", "score", "value", "low", "high", "percentile", "top"]
    return pd.DataFrame(rows, columns=columns).assign(n=images)


def _mean_interval(
    values: Float[np.ndarray, " c"], draws: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean by drawing from the values."""
    generator = np.random.default_rng(seed)
    drawn = values[generator.integers(0, len(values), (draws, len(values)))].mean(axis=1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def agreement(
    score: Float[np.ndarray, " c"],
    truth: Float[np.ndarray, " c"],
    *,
    draws: int,
    seed: int,
    level: float = 0.95,
) -> dict[str, float]:
    """Spearman correlation over components between a score and a truth, with an interval.

    Returns
    -------
    dict
        `value`, `low`, `high` (bootstrap over components), and `percentile`: the share of
        components whose truth is not above that of the component with the highest score, 1 where
        it is the best one.
    """
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(score), (draws, len(score)))
    values = [spearman(score[index], truth[index]) for index in drawn]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    best = truth[int(np.argmax(score))]
    return {
        "value": spearman(score, truth),
        "low": float(low),
        "high": float(high),
        "percentile": float((truth <= best).mean()),
    }


def spearman(first: Float[np.ndarray, " c"], second: Float[np.ndarray, " c"]) -> float:
    """Rank correlation; 0 where one of the two does not vary.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 40.0, 90.0]))
    1.0
    """
    product = (_ranks(first[:, None]) * _ranks(second[:, None])).sum()
    return float(np.clip(np.round(product, 12), -1.0, 1.0))


def _ranks(values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Ranks of each column, centred and scaled to length 1; zero for a constant column."""
    spread = values.max(axis=0) - values.min(axis=0)
    size = np.abs(values).max(axis=0)
    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    length = np.linalg.norm(ranks, axis=0)
    varies = (spread > 1e-6 * size) & (length > 0)
    return np.where(varies, ranks / np.where(length > 0, length, 1.0), 0.0)


def _reader(
    rows: Float[Tensor, "m r"], wanted: Float[Tensor, "m v"]
) -> tuple[Float[Tensor, "r v"], Float[Tensor, " v"]]:
    """Ridge regression of `wanted` on `rows`: weights and offset."""
    mean, offset = rows.mean(dim=0), wanted.mean(dim=0)
    centred = rows - mean
    gram = centred.T @ centred
    ridge = RIDGE * gram.diagonal().mean().clamp_min(1e-30)
    gram.diagonal().add_(ridge)
    weights = torch.cholesky_solve(centred.T @ (wanted - offset), torch.linalg.cholesky(gram))
    return weights, offset - mean @ weights


def _folds(count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions to fit on and positions to look at, each position looked at once."""
    if count < 2 * FOLDS:
        raise DataError(f"{count} images are too few for {FOLDS} folds of cross-validation")
    parts = np.array_split(np.random.default_rng(seed).permutation(count), FOLDS)
    for fold, test in enumerate(parts):
        train = np.concatenate([part for other, part in enumerate(parts) if other != fold])
        yield np.sort(train), np.sort(test)


def _parts(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), -(-count // _CHUNK))
