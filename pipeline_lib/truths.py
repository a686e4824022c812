"""What is known of each component: what its part in the true factors is, and in CLIP's ranking.

Truths, each a number per component and feature: `decodability`, how well the factor is read off the
component alone, and `decodability_in_words`, off what it says in the directions of the words;
`ablation_loss`, `joint_loss` and `margin_loss`, what replacing the component by its mean costs a
reader of the whole; `clip_agreement`, how alike the component and the reference CLIP rank the
images for the feature's descriptors. Each is measured on the images and on redraws of them
(`redraws`), by the same readers. `validation` holds scores against them. Axis letters: `c`
component, `f` factor or feature, `r` coordinates of all components, `v` value of a factor, `s`
shuffle, or set of components, `w` redraw; without redraws there is one, the images themselves.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import rankdata
from torch import Tensor

from pipeline_lib.artifacts import extra_columns
from pipeline_lib.coordinates import Encoded
from pipeline_lib.errors import DataError
from pipeline_lib.redraws import Weights, once
from pipeline_lib.scores import Moments, feature_basis, sum_blocks

log = logging.getLogger(__name__)

#: Columns of table `truth` that need known factors.
FACTOR_TRUTHS = (
    "decodability", "accuracy", "decodability_in_words",
    "ablation_loss", "joint_loss", "margin_loss",
)  # fmt: skip
#: Folds of the cross-validation of linear readers.
FOLDS = 5
#: Ridge of linear readers, relative to the mean variance of a coordinate.
RIDGE = 1e-3
#: Random halves of the components that are ablated together, at least; each with its complement.
HALVES = 200

_CHUNK = 1024
_FEW = 128


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

    def hits(
        self, logits: Float[Tensor, "*w m v"], index: Int[np.ndarray, " m"]
    ) -> Bool[np.ndarray, "*w m f"]:
        """Whether each factor of each image is predicted right."""
        found = [logits[..., columns].argmax(dim=-1).numpy() for columns in self.slices]
        return np.stack(found, axis=-1) == self.codes[index]

    def correct(
        self, logits: Float[Tensor, "*w m v"], index: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "*w f"]:
        """Number of right predictions of each factor."""
        return self.hits(logits, index).sum(axis=-2).astype(float)

    def margins(
        self, logits: Float[Tensor, "*w m v"], index: Int[np.ndarray, " m"]
    ) -> Float[np.ndarray, "*w m f"]:
        """The true value's logit less the mean logit of the factor, of each image."""
        found = []
        for factor, columns in enumerate(self.slices):
            values = logits[..., columns]
            true = torch.from_numpy(self.codes[index, factor])
            true = values[..., torch.arange(len(index)), true]
            found.append((true - values.mean(dim=-1)).numpy())
        return np.stack(found, axis=-1)

    def by_factor(self, values: Float[Tensor, "*w v"]) -> Float[np.ndarray, "*w f"]:
        """Sums over the values of each factor."""
        found = [values[..., columns].sum(dim=-1).numpy() for columns in self.slices]
        return np.stack(found, axis=-1)


def known_factors(images: pd.DataFrame, features: Iterable[str]) -> list[str]:
    """Features that are factors of the images: columns that the data set adds to its manifest.

    A feature named like one of the manifest's own columns (width, group, caption …) is none; it is
    scored like any other, and logged.
    """
    factors = extra_columns("manifest", images)
    for name in features:
        if name in images and name not in factors:
            log.warning(
                "the concept %r has the name of one of the manifest's own columns, which is no "
                "factor of the images: it is scored, and not held against a truth. Where it is "
                "one, give the concept and the column another name, and list it under factors",
                name,
            )
    return [name for name in features if name in factors]


def decodability(
    encoded: Encoded, factors: Factors, *, seed: int, weights: Weights | None = None
) -> tuple[Float[np.ndarray, "w c f"], Float[np.ndarray, "w c f"]]:
    """How well a linear reader tells each factor from each component alone: R² and accuracy.

    Ridge regression on the one-hot code, measured on images that the reader was not fitted on
    (cross-validation over `FOLDS`). R² is the share of the code's variance that is read; unlike
    accuracy it still tells components apart that are always right.
    """
    target = _Target.of(factors, once(len(encoded)) if weights is None else weights)
    alone = (encoded.values[:, columns] for columns in encoded.bases.slices)
    found = [_told(torch.from_numpy(rows).double(), target, seed) for rows in alone]
    read, accuracy = (np.stack(each, axis=1) for each in zip(*found, strict=True))
    return read, accuracy


def decodability_in_words(
    encoded: Encoded,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    factors: Factors,
    *,
    seed: int,
    weights: Weights | None = None,
) -> Float[np.ndarray, "w c f"]:
    """R² of linear readers of what each component says in the directions of a factor's words.

    As `decodability`, but the reader sees the mapped contribution in the subspace of the feature's
    descriptors: as many numbers of every component, and those that scores are made of. A component
    with more coordinates than another is not easier to read for that, and what it carries in
    directions that the words do not name is not counted.
    """
    weights = once(len(encoded)) if weights is None else weights
    result = np.zeros((len(weights), len(encoded.bases.vectors), len(factors.names)))
    for place, name in enumerate(factors.names):
        reading = found.blocks @ feature_basis(features[name])
        one = Factors((name,), factors.codes[:, [place]], (factors.counts[place],))
        target = _Target.of(one, weights)
        for component, columns in enumerate(encoded.bases.slices):
            rows = torch.from_numpy(encoded.values[:, columns]).double() - found.mean[columns]
            read, _ = _told(rows @ reading[columns], target, seed)
            result[:, component, place] = read[:, 0]
    return result


@dataclass(frozen=True)
class _Target:
    """What linear readers are to tell, and how much there is to tell in every redraw.

    Attributes
    ----------
    factors, wanted
        Factors, and their one-hot code `[n, v]`.
    counts, images
        How often each image counts `[w, n]`, and all together `[w, 1]`, at least 1.
    spread
        Sum of squares of the code about its mean `[w, f]`; 0 where all images have one value.
    """

    factors: Factors
    wanted: Float[Tensor, "n v"]
    counts: Float[np.ndarray, "w n"]
    images: Float[np.ndarray, "w 1"]
    spread: Float[np.ndarray, "w f"]

    @classmethod
    def of(cls, factors: Factors, weights: Weights) -> _Target:
        wanted, counts = factors.one_hot(), weights.astype(np.float64)
        images = counts.sum(axis=1, keepdims=True).clip(1.0)
        sums = torch.from_numpy(counts) @ wanted
        # The code is 0 or 1, so its squares are itself.
        spread = factors.by_factor(sums - sums.square() / torch.from_numpy(images))
        return cls(factors, wanted, counts, images, spread)


def _told(
    rows: Float[Tensor, "n r"], target: _Target, seed: int
) -> tuple[Float[np.ndarray, "w f"], Float[np.ndarray, "w f"]]:
    """R² and accuracy of cross-validated linear readers of `rows`, factor by factor.

    R² is 0 in a redraw whose images all have one value: there is nothing to read.
    """
    wanted, counts = target.wanted, target.counts
    right, missed = np.zeros((2, len(rows), len(target.factors.names)))
    for train, test in folds(len(rows), seed):
        reader, offset = linear_reader(rows[train], wanted[train])
        read = rows[test] @ reader + offset
        right[test] = target.factors.hits(read, test)
        missed[test] = target.factors.by_factor((wanted[test] - read).square())
    varies = target.spread > 1e-9
    share = 1 - counts @ missed / np.where(varies, target.spread, 1.0)
    return np.where(varies, share, 0.0), counts @ right / target.images


@dataclass(frozen=True)
class AblationLoss:
    """What a reader of the representation loses when components are replaced by their means.

    Attributes
    ----------
    alone
        Accuracy lost when the component alone is ablated `[w, c, f]`; negative where that helps. It
        is 0 wherever the others carry the factor too.
    joint
        Accuracy lost by ablating the component, on average over all sets of others that are ablated
        with it (its Banzhaf value), estimated from random halves `[w, c, f]`.
    margin
        Loss of the margin between the true value and the mean of all, the component alone ablated
        `[w, c, f]`.
    full
        Accuracy with nothing ablated `[w, f]`.
    """

    alone: Float[np.ndarray, "w c f"]
    joint: Float[np.ndarray, "w c f"]
    margin: Float[np.ndarray, "w c f"]
    full: Float[np.ndarray, "w f"]


def ablation_loss(
    encoded: Encoded, factors: Factors, *, seed: int, weights: Weights | None = None
) -> AblationLoss:
    """Losses of a linear reader that is fitted on the whole representation.

    It is applied to images that it was not fitted on, with components mean-ablated
    (cross-validation over `FOLDS`).

    Notes
    -----
    The Banzhaf value is the slope of the accuracy on which components are kept, in a least-squares
    fit over random halves and their complements (Hammer and Holzman 1992).
    """
    weights = once(len(encoded)) if weights is None else weights
    bases, wanted = encoded.bases, factors.one_hot()
    count = len(bases.vectors)
    summing = sum_blocks(bases).double()
    whole = torch.cat([encoded.rows(part).double() @ summing for part in _parts(len(encoded))])
    alone = np.eye(count, dtype=np.float32)
    ablated = np.concatenate([np.zeros((1, count)), alone, 1 - kept_halves(count, seed)])
    ablated = ablated.astype(np.float32)
    right = np.zeros((len(weights), len(ablated), len(factors.names)))
    margin = np.zeros((len(weights), count, len(factors.names)))
    for train, test in folds(len(encoded), seed):
        reader, offset = linear_reader(whole[train], wanted[train])
        mean = encoded.mean(train)
        through = summing @ reader
        for part in np.array_split(test, -(-len(test) // _FEW)):
            centred = encoded.rows(part).double() - mean
            removed = torch.stack([centred[:, s] @ through[s] for s in bases.slices])
            lost = (torch.from_numpy(ablated) @ removed.float().flatten(1)).view(
                len(ablated), len(part), -1
            )
            logits = (whole[part] @ reader + offset).float() - lost
            right += _weighed(factors.hits(logits, part), weights[:, part])
            margin += _weighed(factors.margins(removed, part), weights[:, part])
    images = weights.sum(axis=1, dtype=float).clip(1.0)[:, None, None]
    accuracy = right / images
    kept = 1 - ablated[1 + count :]
    joint = np.stack([banzhaf(kept, one[1 + count :]) for one in accuracy])
    full = accuracy[:, :1]
    losses = full - accuracy[:, 1 : 1 + count]
    return AblationLoss(losses, joint, margin / images, full[:, 0])


def _weighed(values: Shaped[np.ndarray, "s m f"], weights: Weights) -> Float[np.ndarray, "w s f"]:
    """Sums over images, in every redraw."""
    count, images, width = values.shape
    flat = values.transpose(1, 0, 2).reshape(images, count * width)
    kind = np.float64 if values.dtype == np.float64 else np.float32  # counts are exact in both
    return (weights.astype(kind) @ flat.astype(kind)).reshape(len(weights), count, width)


def kept_halves(count: int, seed: int) -> Bool[np.ndarray, "s c"]:
    """Random halves of `count` components, then the complement of each."""
    halves = np.random.default_rng(seed).random((max(HALVES, 2 * count), count)) < 0.5
    return np.concatenate([~halves, halves])


def banzhaf(
    kept: Float[np.ndarray, "s c"] | Bool[np.ndarray, "s c"], values: Float[np.ndarray, "s f"]
) -> Float[np.ndarray, "c f"]:
    """Slopes of values on which components are kept (Hammer and Holzman 1992)."""
    design = np.concatenate([kept, np.ones((len(kept), 1))], axis=1)
    return np.linalg.lstsq(design, values, rcond=None)[0][:-1]


def clip_agreement(
    encoded: Encoded,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    rankings: Mapping[str, Float[np.ndarray, "n k"]],
    orders: Int[np.ndarray, "s n"],
    weights: Weights | None = None,
) -> tuple[Float[np.ndarray, "s c f"], Float[np.ndarray, "w c f"]]:
    """How alike each component and the reference CLIP rank the images for each feature.

    Spearman correlation over images, descriptor by descriptor; mean over the descriptors of the
    feature. Zero where a component is constant.

    Parameters
    ----------
    encoded, found
        Coordinates and moments of the model.
    features
        Feature to its descriptors in the model's CLIP space.
    rankings
        Feature to the reference CLIP's similarity of each image, in the order of `encoded`, to the
        same descriptors.
    orders
        Orders in which CLIP's images are taken: `0 … n-1` for the truth; any other is a control
        that must come out near 0.
    weights
        Redraws of the images, in which ranks stay those among all images.

    Returns
    -------
    tuple
        The agreement in each order, and in CLIP's own order in each redraw.

    Notes
    -----
    P2 (validation of CompAttribute). P2's script compares two different orders of images; here
    they are the same.
    """
    weights = once(len(encoded)) if weights is None else weights
    counts = weights.astype(np.float32)
    count = len(encoded.bases.vectors)
    result = np.zeros((len(orders), count, len(features)))
    drawn = np.zeros((len(weights), count, len(features)))
    for place, (name, descriptors) in enumerate(features.items()):
        reading = (found.blocks @ descriptors.double().T).float()
        target = ranks(rankings[name]).astype(np.float32)
        every = (ranks(_read(encoded, columns, reading)) for columns in encoded.bases.slices)
        own = np.stack([values.astype(np.float32) for values in every])
        flat = own.reshape(count, -1)
        for shuffle, order in enumerate(orders):
            result[shuffle, :, place] = flat @ target[order].ravel() / len(descriptors)
        for component, values in enumerate(own):
            drawn[:, component, place] = _correlations(values, target, counts).mean(axis=1)
    return result, drawn


def _correlations(
    one: Float[np.ndarray, "n k"], other: Float[np.ndarray, "n k"], counts: Float[np.ndarray, "w n"]
) -> Float[np.ndarray, "w k"]:
    """Pearson correlation of each pair of columns in every redraw; 0 where one does not vary."""
    columns = one.shape[1]
    sums = counts @ np.concatenate([one, other, one * one, other * other, one * other], axis=1)
    total = counts.sum(axis=1, keepdims=True).clip(1.0)
    first, second, square, other_square, product = (
        sums[:, i * columns : (i + 1) * columns] for i in range(5)
    )
    covariance = product - first * second / total
    spread = (square - first**2 / total) * (other_square - second**2 / total)
    varies = spread > 1e-9  # of columns of length 1, or 0
    return np.where(varies, covariance / np.sqrt(np.where(varies, spread, 1.0)), 0.0)


def _read(
    encoded: Encoded, columns: slice, reading: Float[Tensor, "r k"]
) -> Float[np.ndarray, "n k"]:
    rows = torch.from_numpy(np.ascontiguousarray(encoded.values[:, columns]))
    return (rows @ reading[columns]).numpy()


def truth_table(
    encoded: Encoded,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    *,
    factors: Factors,
    rankings: Mapping[str, Float[np.ndarray, "n k"]],
    shuffles: int,
    seed: int,
    weights: Weights | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of tables `truth` and `redraws`, without model, data set and facts on the components.

    Parameters
    ----------
    encoded, found, features
        Coordinates, moments, and the features' descriptors in the model's CLIP space.
    factors
        Those features that are known factors of the images.
    rankings
        As for `clip_agreement`; empty where the run has no reference CLIP.
    shuffles
        Number of orders of the control.
    seed
        Of folds and shuffles.
    weights
        The images and redraws of them, from `redraws.redraw`.

    Returns
    -------
    tuple
        The truths, and the columns of table `redraws` that are truths.
    """
    weights = once(len(encoded)) if weights is None else weights
    count = len(encoded.bases.vectors)
    table = pd.DataFrame(
        [(name, component) for name in features for component in range(count)],
        columns=["feature", "component"],
    )
    drawn = table.copy()
    measured = _factor_truths(encoded, found, features, factors, seed, weights)
    for column in FACTOR_TRUTHS:
        table[column], drawn[column] = np.nan, None
        for place, name in enumerate(factors.names):
            rows = table["feature"] == name
            table.loc[rows, column] = measured[column][0, :, place]
            drawn.loc[rows, column] = _lists(measured[column][1:, :, place])
    table["clip"], table["clip_shuffled"], drawn["clip"] = np.nan, None, None
    if rankings:
        generator, images = np.random.default_rng(seed), np.arange(len(encoded))
        orders = [images, *(generator.permutation(images) for _ in range(shuffles))]
        asked = (features, rankings, np.stack(orders), weights)
        alike, redrawn = clip_agreement(encoded, found, *asked)
        table["clip"] = alike[0].T.ravel()
        table["clip_shuffled"] = _lists(alike[1:].transpose(0, 2, 1).reshape(shuffles, -1))
        drawn["clip"] = _lists(redrawn[1:].transpose(0, 2, 1).reshape(len(weights) - 1, -1))
    return table, drawn.drop(columns="accuracy")


def _lists(values: Float[np.ndarray, "w c"]) -> pd.api.extensions.ExtensionArray:
    """The values of each column as one entry."""
    return pd.Series(list(values.T.astype(np.float32)), dtype=object).array


def _factor_truths(
    encoded: Encoded,
    found: Moments,
    features: Mapping[str, Float[Tensor, "k e"]],
    factors: Factors,
    seed: int,
    weights: Weights,
) -> dict[str, Float[np.ndarray, "w c f"]]:
    """Column of table `truth` to its values; without values where no factor is known."""
    if not factors.names:
        return {}
    read, accuracy = decodability(encoded, factors, seed=seed, weights=weights)
    loss = ablation_loss(encoded, factors, seed=seed, weights=weights)
    said = decodability_in_words(encoded, found, features, factors, seed=seed, weights=weights)
    values = (read, accuracy, said, loss.alone, loss.joint, loss.margin)
    return dict(zip(FACTOR_TRUTHS, values, strict=True))


def ranks(values: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Ranks of each column, centred and scaled to length 1; zero for a constant column."""
    spread = values.max(axis=0) - values.min(axis=0)
    size = np.abs(values).max(axis=0)
    found = rankdata(values, axis=0)
    found -= found.mean(axis=0)
    length = np.linalg.norm(found, axis=0)
    varies = (spread > 1e-6 * size) & (length > 0)
    return np.where(varies, found / np.where(length > 0, length, 1.0), 0.0)


def linear_reader(
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


def folds(count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions to fit on and positions to look at, each position looked at once."""
    if count < 2 * FOLDS:
        raise DataError(f"{count} images are too few for {FOLDS} folds of cross-validation")
    parts = np.array_split(np.random.default_rng(seed).permutation(count), FOLDS)
    for fold, test in enumerate(parts):
        train = np.concatenate([part for other, part in enumerate(parts) if other != fold])
        yield np.sort(train), np.sort(test)


def _parts(count: int) -> list[np.ndarray]:
    return np.array_split(np.arange(count), -(-count // _CHUNK))
