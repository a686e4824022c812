"""Text labels of components: the texts whose directions explain most of a component's variance.

Everything works on second moments (`scores.moments`), so its cost does not depend on the number of
images. Axis letters: `k` text, `e` width of the CLIP space, `m` coordinates in which texts are
given, `p` directions in which a component varies, `s` step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline_lib.errors import DataError, close_matches
from pipeline_lib.scores import Moments

Method = Literal["textspan", "published", "omp"]
METHODS: tuple[Method, ...] = ("textspan", "published", "omp")

#: Rank of the published method.
PUBLISHED_RANK = 80
#: Directions in which a component has less than this share of its largest variance are rounding.
VARIANCE_TOLERANCE = 1e-8
#: Weight of a text's share in the component's subspace. It decides between texts that explain the
#: same, which all do in a component of one direction.
TIE = 0.01
#: Components with less than this share of the largest component's variance are constant.
CONSTANT = 1e-10


@dataclass(frozen=True)
class Labels:
    """Texts of one component in the order in which they were picked.

    Attributes
    ----------
    texts
        Indices into the pool.
    gains
        Share of the component's variance that each text adds.
    bounds
        Share that the same number of principal components explains; no texts can explain more.
    directions
        Orthonormal directions removed by the texts `[s, e]`; the first `j` explain what the first
        `j` texts do.
    """

    texts: Sequence[int]
    gains: Sequence[float]
    bounds: Sequence[float]
    directions: Float[Tensor, "s e"]


def label_components(
    found: Moments,
    pool: Float[Tensor, "k e"],
    *,
    count: int = 10,
    method: Method = "textspan",
    random: Sequence[Labels] | None = None,
    min_gain: float = 0.005,
    min_residual: float = 0.3,
) -> list[Labels]:
    """Texts that explain each component, from the most to the least.

    Parameters
    ----------
    found
        Moments of the mapped contributions.
    pool
        Unit text embeddings.
    count
        Texts per component at most.
    method
        `textspan`: texts are projected to the directions in which the component varies; the text
        whose remaining direction explains most variance is picked, and removed from contributions
        and texts. `omp`: simultaneous orthogonal matching pursuit on the whole texts: the text is
        picked whose unit vector has the largest products with what the picked ones leave of the
        contributions, and only what lies in the span of the picked texts counts as explained. In
        both a text stands for what sets it apart: the mean of the pool is taken off its embedding.
        `published`: as `textspan` with P1's
        choices: embeddings as they are, projected to the first `PUBLISHED_RANK` uncentred singular
        vectors, not renormalised (so that a text of which little is left is seldom picked), and no
        end before `count`.
    random
        Labels of the same components from a pool of random vectors of the same size
        (`random_pool`, with `min_gain` 0). After its first text a component gets no further one
        that explains less of what remains than the random vector of the same step did (not
        `published`). By default such texts are kept, and the table of labels says beside them what
        random vectors explain.
    min_gain
        Share of the variance below which no further text is picked (not `published`).
    min_residual
        Share of its length that a text must have kept to be picked (`textspan`): what is left of a
        text that resembles picked ones is no longer what the text says.

    Returns
    -------
    list
        One entry per component; without texts where the component does not vary.

    Raises
    ------
    DataError
        The pool is empty or holds NaN, or too few images or texts are there for what is asked.

    Notes
    -----
    P1 section 4 (TextSpan, algorithm 1). Tropp, Gilbert and Strauss 2006, section 3 (simultaneous
    orthogonal matching pursuit, with the sum of squares). Picking by what the *remaining* direction
    of a text explains, as `textspan` does in its frame, is orthogonal least squares.
    """
    if method not in METHODS:
        raise DataError(f"{method!r} is no method of labelling; {close_matches(method, METHODS)}")
    check_pool(found, pool, count, method)
    pool = pool.double() if method == "published" else apart(pool)
    variances = found.variances()
    labels = []
    for component, variance in enumerate(variances.tolist()):
        if variance <= CONSTANT * float(variances.max()):
            labels.append(Labels([], [], [], pool.new_zeros(0, pool.shape[1])))
            continue
        factor = principal_factor(found, component)
        frame = _frame(found, component, factor, method)
        chance = [] if random is None else _remaining_shares(random[component].gains)
        labels.append(
            _greedy(
                pool,
                frame,
                factor,
                count,
                _Rules(method, min_gain, min_residual, chance),
            )
        )
    return labels


def apart(pool: Float[Tensor, "k e"]) -> Float[Tensor, "k e"]:
    """What sets each text of a pool apart: unit vectors of the embeddings less their mean.

    All texts of a CLIP share one large direction (the demo's: 58 % of their squared length), which
    says nothing about any of them.
    """
    return torch.nn.functional.normalize(pool.double() - pool.double().mean(dim=0), dim=1)


def random_pool(count: int, width: int, seed: int) -> Float[Tensor, "k e"]:
    """Random unit vectors: what a pool of as many texts without meaning would explain."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return torch.nn.functional.normalize(vectors, dim=1)


def label_table(
    found: Moments,
    labels: Sequence[Labels],
    texts: Sequence[str],
    categories: Sequence[str],
    components: pd.DataFrame,
    *,
    random: Sequence[Labels],
    random_texts: Sequence[Labels] | None = None,
    heldout: Sequence[Sequence[float]] | None = None,
    interval: tuple[Sequence[float], Sequence[float]] | None = None,
) -> pd.DataFrame:
    """Rows of table `labels`, without model and data set: one per component and text.

    Parameters
    ----------
    found, labels
        Moments, and what `label_components` made of them.
    texts, categories
        The pool.
    components
        Table `components`.
    random
        Labels of the same components from a pool of random vectors (`random_pool`), chosen in the
        same way, with at least as many steps.
    random_texts
        The same from a pool of random texts; missing in the table where it is not given.
    heldout
        For each component the cumulative share of other images' variance that the texts explain;
        missing in the table where it is not given.
    interval
        Lower and upper end of every component's strength, from `significance.bootstrap_strengths`;
        missing in the table where it is not given.
    """
    rows = []
    nothing = [float("nan")] * len(components)
    low, high = (nothing, nothing) if interval is None else interval
    facts = components[["component", "id", "kind", "layer", "head"]].to_dict("records")
    for fact, label in zip(facts, labels, strict=True):
        component = fact["component"]
        fresh = None if heldout is None else heldout[component]
        for row in text_rows(label, texts, categories, fresh):
            rank = row["rank"]
            rows.append(
                fact
                | row
                | {
                    "cumulative_pca": label.bounds[rank],
                    "cumulative_random": _explained_by(random, component, rank + 1),
                    "cumulative_random_texts": _explained_by(random_texts, component, rank + 1),
                    "strength": float(found.strengths[component]),
                    "strength_low": float(low[component]),
                    "strength_high": float(high[component]),
                }
            )
    columns = ["component", "id", "kind", "layer", "head", "rank", "text", "category", "variance"]
    columns += [
        f"cumulative{kind}" for kind in ("", "_pca", "_random", "_random_texts", "_heldout")
    ]
    columns += ["strength", "strength_low", "strength_high"]
    return pd.DataFrame(rows, columns=columns)


def _explained_by(labels: Sequence[Labels] | None, component: int, count: int) -> float:
    """Share of a component that the first texts of its label explain; NaN without labels."""
    return float("nan") if labels is None else float(sum(labels[component].gains[:count]))


def text_rows(
    label: Labels,
    texts: Sequence[str],
    categories: Sequence[str],
    heldout: Sequence[float] | None,
) -> list[dict[str, Any]]:
    """The steps of one label: rank, text, category, variance, cumulative, cumulative_heldout.

    Parameters
    ----------
    label
        Texts of a component, or of a part of the model.
    texts, categories
        The pool.
    heldout
        Cumulative share of other images' variance after each text; without it
        `cumulative_heldout` is NaN.
    """
    fresh = [float("nan")] * len(label.texts) if heldout is None else heldout
    return [
        {
            "rank": rank,
            "text": texts[text],
            "category": categories[text],
            "variance": label.gains[rank],
            "cumulative": float(sum(label.gains[: rank + 1])),
            "cumulative_heldout": fresh[rank],
        }
        for rank, text in enumerate(label.texts)
    ]


def explained(
    found: Moments, component: int, directions: Float[Tensor, "s e"]
) -> Float[Tensor, " s"]:
    """Cumulative share of a component's variance along orthonormal `directions`.

    With the moments of other images than those the directions were found on, this is the variance
    explained on held-out images.
    """
    factor = principal_factor(found, component)
    along = (directions.double() @ factor.T).square().sum(dim=1)
    return along.cumsum(0) / factor.square().sum().clamp_min(1e-300)


def component_variances(found: Moments, component: int) -> Float[np.ndarray, " p"]:
    """Variances of a mapped component along its principal directions, the largest first."""
    return principal_factor(found, component).square().sum(dim=1).numpy()


def principal_directions(found: Moments, component: int) -> Float[Tensor, "p e"]:
    """Principal directions of a mapped component as orthonormal rows, the largest first."""
    factor = principal_factor(found, component)
    return factor / factor.norm(dim=1, keepdim=True).clamp_min(1e-300)


def principal_factor(found: Moments, component: int) -> Float[Tensor, "p e"]:
    """Rows whose Gram matrix is the covariance of a mapped component; orthogonal, largest first."""
    eigenvalues, vectors = torch.linalg.eigh(found.within[component])
    roots = eigenvalues.clamp_min(0).sqrt()
    rows = (roots * vectors).T @ found.blocks[found.bases.slices[component]]
    _, singular, right = torch.linalg.svd(rows, full_matrices=False)
    keep = singular.square() > VARIANCE_TOLERANCE * singular[0].square()
    return singular[keep, None] * right[keep]


def _frame(
    found: Moments, component: int, factor: Float[Tensor, "p e"], method: Method
) -> Float[Tensor, "m e"] | None:
    """Orthonormal directions that texts are projected to; `None` where they are taken whole."""
    if method == "omp":
        return None
    if method == "textspan":
        return factor / factor.norm(dim=1, keepdim=True)
    columns = found.bases.slices[component]
    mean = found.mean[columns] @ found.blocks[columns]
    rows = torch.cat([factor, mean[None]])
    right = torch.linalg.svd(rows, full_matrices=False).Vh
    return right[:PUBLISHED_RANK]


@dataclass(frozen=True)
class _Rules:
    """How texts are picked, and when no more are."""

    method: Method
    min_gain: float
    min_residual: float
    chance: Sequence[float]

    def scores(
        self, variance: Float[Tensor, " k"], squares: Float[Tensor, " k"]
    ) -> Float[Tensor, " k"]:
        """What texts are picked by, the largest first.

        Parameters
        ----------
        variance
            Sum of the squared products of the contributions with what is left of each text; with
            the whole text it is the same of what is left of the contributions.
        squares
            Squared length of what is left of each text.
        """
        if self.method != "textspan":
            return variance
        return variance / squares.clamp_min(1e-300) * (1 + TIE * squares)

    def floors(self, squares: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
        """Squared length that must be left of each text for it to be picked."""
        share = self.min_residual**2 if self.method == "textspan" else 0.0
        return (share * squares).clamp_min(1e-12 * float(squares.max()))

    def enough(self, step: int, gain: float, explained: float) -> bool:
        """Whether a text that adds `gain` to the share `explained` before is not worth picking."""
        if self.method == "published":
            return False
        by_chance = self.chance[step] if 0 < step < len(self.chance) else 0.0
        return gain < self.min_gain or gain < by_chance * (1 - explained)


def _remaining_shares(gains: Sequence[float]) -> list[float]:
    """What each step explains of the variance that the steps before it left."""
    left = 1.0
    shares = []
    for gain in gains:
        shares.append(gain / left if left > 1e-9 else 0.0)
        left -= gain
    return shares


def _greedy(
    pool: Float[Tensor, "k e"],
    frame: Float[Tensor, "m e"] | None,
    factor: Float[Tensor, "p e"],
    count: int,
    rules: _Rules,
) -> Labels:
    """Pick texts one after another; each is removed from the contributions and from the texts.

    The variance along a text's remaining direction `t` is `‖factor t‖²`: the directions removed
    before are orthogonal to `t`, so the contributions need not be changed.
    """
    texts = pool if frame is None else pool @ frame.T
    reading = factor if frame is None else factor @ frame.T
    total = factor.square().sum()
    along = texts @ reading.T
    squares = texts.square().sum(dim=1)
    floors = rules.floors(squares)
    picked: list[int] = []
    gains: list[float] = []
    directions: list[Tensor] = []
    for step in range(count):
        scores = rules.scores(along.square().sum(dim=1), squares)
        best = int(torch.where(squares > floors, scores, -1.0).argmax())
        if squares[best] <= floors[best]:
            break
        direction = _remaining(texts[best], directions)
        gain = float((reading @ direction).square().sum() / total)
        if rules.enough(step, gain, sum(gains)):
            break
        share = texts @ direction
        squares = squares - share.square()
        along = along - share[:, None] * (reading @ direction)
        picked.append(best)
        gains.append(gain)
        directions.append(direction)
    stacked = torch.stack(directions) if directions else texts.new_zeros(0, texts.shape[1])
    bounds = factor.square().sum(dim=1).cumsum(0) / total
    return Labels(
        texts=picked,
        gains=gains,
        bounds=[float(bounds[min(step, len(bounds) - 1)]) for step in range(len(picked))],
        directions=stacked if frame is None else stacked @ frame,
    )


def _remaining(text: Float[Tensor, " m"], directions: Sequence[Tensor]) -> Float[Tensor, " m"]:
    """Unit vector of what is left of a text after the directions picked before it."""
    rest = text
    for _ in range(2):  # twice is enough to be orthogonal to rounding
        for direction in directions:
            rest = rest - (rest @ direction) * direction
    return rest / rest.norm()


def check_pool(
    found: Moments, pool: Float[Tensor, "k e"], count: int, method: Method = "textspan"
) -> None:
    """Raise one `DataError` unless a pool and the number of images allow `count` texts."""
    if len(pool) < count:
        raise DataError(
            f"{count} texts per component are asked for, but the pool has {len(pool)}; "
            "lower scores.texts_per_component or use a larger text pool"
        )
    if pool.shape[1] != found.total.shape[0]:
        raise DataError(
            f"texts have width {pool.shape[1]}, contributions are mapped to width "
            f"{found.total.shape[0]}: they belong to different CLIP spaces"
        )
    if not torch.isfinite(pool).all():
        raise DataError("the text embeddings of the pool hold NaN or infinity")
    rank = min(PUBLISHED_RANK, pool.shape[1]) if method == "published" else count
    if found.n <= rank:
        raise DataError(
            f"{found.n} images are too few for {rank} directions per component; use more than "
            f"{rank} images or ask for fewer texts"
        )
    if method == "published" and count > rank:
        raise DataError(f"the published method has rank {rank}; it cannot give {count} texts")
