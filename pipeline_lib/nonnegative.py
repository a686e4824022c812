"""Text labels with amounts that are never negative: what an image has *more* of than the average.

The other methods of `textspan` let a text stand for its opposite too. Here every image's centred
contribution is written as a sum of texts with amounts of at least 0, so that a component that tells
red from green needs both words. Axis letters: `n` image, `k` text, `s` picked text, `p` directions
in which a component varies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline_lib.coordinates import Encoded
from pipeline_lib.scores import Moments
from pipeline_lib.textspan import CONSTANT, Labels, apart, check_pool, principal_factor

#: Images that texts are chosen on at most, evenly spaced.
SAMPLE = 500
#: Sweeps over the amounts after each further text, and the change at which they are enough.
SWEEPS, ENOUGH = 40, 1e-4


def label_nonnegative(
    encoded: Encoded,
    found: Moments,
    pool: Float[Tensor, "k e"],
    *,
    count: int = 10,
    min_gain: float = 0.005,
) -> list[Labels]:
    """Texts that explain each component with non-negative amounts, picked one after another.

    The text is picked that explains most of what remains if its amounts alone were fitted; then
    the amounts of all picked texts are fitted anew (non-negative orthogonal matching pursuit).

    Parameters
    ----------
    encoded, found
        Coordinates and moments of the same images.
    pool
        Unit text embeddings; a text stands for what sets it apart, as in `label_components`.
    count
        Texts per component at most.
    min_gain
        Share of the variance below which no further text is picked.

    Returns
    -------
    list
        One entry per component; `gains` are what non-negative amounts explain, `directions` span
        the picked texts.

    Raises
    ------
    DataError
        As `label_components`.
    """
    check_pool(found, pool, count)
    texts = apart(pool).float()
    variances = found.variances()
    labels = []
    for component, images in enumerate(_images(encoded, found)):
        if variances[component] <= CONSTANT * variances.max():
            labels.append(Labels([], [], [], pool.new_zeros(0, pool.shape[1]).double()))
            continue
        picked, shares = pursue(images, texts, count=count, min_gain=min_gain)
        squares = principal_factor(found, component).square().sum(dim=1)
        bounds = (squares.cumsum(0) / squares.sum()).tolist()
        labels.append(
            Labels(
                texts=picked,
                gains=np.diff(shares, prepend=0.0).tolist(),
                bounds=[bounds[min(step, len(bounds) - 1)] for step in range(len(picked))],
                directions=torch.linalg.qr(texts[picked].double().T).Q.T,
            )
        )
    return labels


def nonnegative_shares(
    encoded: Encoded, found: Moments, pool: Float[Tensor, "k e"], labels: Sequence[Labels]
) -> list[list[float]]:
    """Share of other images' squares that amounts of each label's first texts explain.

    The amounts are fitted on these images and are never negative, as where the texts were chosen;
    the span of the texts would explain more, because it lets a text stand for its opposite.

    Parameters
    ----------
    encoded, found
        Coordinates and moments of the images.
    pool, labels
        What `label_nonnegative` was given, and what it made.
    """
    texts, shares = apart(pool), []
    for label, images in zip(labels, _images(encoded, found), strict=True):
        steps = range(1, len(label.texts) + 1)
        kept = nonnegative_parts(images, texts[list(label.texts)], steps)
        total = images.square().sum().clamp_min(1e-30)
        shares.append([float(1 - (images - part).square().sum() / total) for part in kept])
    return shares


def nonnegative_parts(
    images: Float[Tensor, "n e"], texts: Float[Tensor, "s e"], counts: Sequence[int]
) -> list[Float[Tensor, "n e"]]:
    """What the first texts of a label, in non-negative amounts, make of centred images.

    Parameters
    ----------
    images
        Centred contributions of the component.
    texts
        Those of the label in their order: rows of the pool's `apart`.
    counts
        Numbers of texts.
    """
    chosen = texts.to(images)
    alike, gram = images @ chosen.T, chosen @ chosen.T
    parts = []
    for count in counts:
        first = slice(min(count, len(chosen)))
        start = alike[:, first].clamp_min(0)
        amounts = nonnegative_amounts(alike[:, first], gram[first, first], start)
        parts.append(amounts @ chosen[first])
    return parts


def _images(encoded: Encoded, found: Moments) -> Iterator[Float[Tensor, "n e"]]:
    """For each component its centred, mapped contributions to the images that are looked at."""
    rows = encoded.rows(sampled(len(encoded))) - found.mean.float()
    for columns in found.bases.slices:
        yield rows[:, columns] @ found.blocks[columns].float()


def sampled(count: int) -> Int[np.ndarray, " m"]:
    """Positions of the images that texts are chosen on, of `count`: `SAMPLE`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(int))


def pursue(
    images: Float[Tensor, "n e"], texts: Float[Tensor, "k e"], *, count: int, min_gain: float
) -> tuple[list[int], list[float]]:
    """Indices of the picked unit texts, and the share of the squares explained after each."""
    alike = images @ texts.T
    total = images.square().sum().clamp_min(1e-30)
    amounts, products = images.new_zeros(len(images), 0), texts.new_zeros(0, len(texts))
    picked: list[int] = []
    shares: list[float] = []
    for _ in range(count):
        left = torch.addmm(alike, amounts, products, alpha=-1)
        score = left.clamp_min(0).square().sum(dim=0)
        score[picked] = -1.0
        best = int(score.argmax())
        tried = torch.cat([amounts, left[:, best, None].clamp_min(0)], dim=1)
        chosen = [*picked, best]
        rows = torch.cat([products, (texts[best] @ texts.T)[None]])
        tried = nonnegative_amounts(alike[:, chosen], rows[:, chosen], tried)
        rest = (images - tried @ texts[chosen]).square().sum()
        share = float(1 - rest / total)
        if share - (shares[-1] if shares else 0.0) < min_gain:
            break
        picked, amounts, products = chosen, tried, rows
        shares.append(share)
    return picked, shares


def nonnegative_amounts(
    alike: Float[Tensor, "n s"], gram: Float[Tensor, "s s"], start: Float[Tensor, "n s"]
) -> Float[Tensor, "n s"]:
    """Non-negative least squares of every image on unit texts, by coordinate descent.

    Parameters
    ----------
    alike
        Products of images and texts.
    gram
        Products of the texts with each other.
    start
        Amounts to start from.
    """
    amounts = start.clone()
    for _ in range(SWEEPS):
        change = 0.0
        for text in range(amounts.shape[1]):
            own = amounts[:, text]
            new = (own + alike[:, text] - amounts @ gram[:, text]).clamp_min(0)
            change = max(change, float((new - own).abs().max()))
            amounts[:, text] = new
        if not change or change <= ENOUGH * float(amounts.abs().max()):
            break
    return amounts
