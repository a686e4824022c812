"""Redraws of the images: how often each image counts in each of them.

Scores and truths of the same components are measured on the same redraws, so that the interval of
how well one follows the other is over images. Axis letters: `w` redraw, `n` image.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

#: Standard errors that 95 % of a normal variable are within, to either side.
REACH = 1.96
#: How often each image counts in each redraw.
Weights = UInt8[np.ndarray, "w n"]


def redraw(images: int, draws: int, seed: int) -> Weights:
    """How often each image counts: once in row 0, as it was drawn with replacement in the others.

    Parameters
    ----------
    images
        Number of images.
    draws
        Redraws after row 0. In each an image counts as often as a Poisson variable of mean 1 says,
        which for more than some 20 images is the bootstrap (Hanley and MacGibbon 2006).
    seed
        Of the redraws.

    Examples
    --------
    >>> redraw(4, 0, seed=0).tolist()
    [[1, 1, 1, 1]]
    """
    drawn = np.random.default_rng(seed).poisson(1.0, (draws, images)).astype(np.uint8)
    return np.concatenate([np.ones((1, images), np.uint8), drawn])


def once(images: int) -> Weights:
    """Every image counts once: the images themselves and no redraw of them."""
    return redraw(images, 0, seed=0)


def spread_interval(
    value: Float[np.ndarray, "*s"], drawn: Float[np.ndarray, "w *s"]
) -> tuple[Float[np.ndarray, "*s"], Float[np.ndarray, "*s"]]:
    """Ends of a 95 % interval: `REACH` standard errors to either side, from values in redraws.

    Rank correlations and losses of redraws lie lower than those of the images, since an image that
    is drawn twice says nothing new; quantiles of them would not hold the value itself.
    """
    error = REACH * drawn.std(axis=0, ddof=1)
    return value - error, value + error
