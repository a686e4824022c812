"""Intervals of means by bootstrap: what is measured on images, queries or models is drawn anew."""

from __future__ import annotations

import numpy as np
from jaxtyping import Shaped

#: Numbers drawn at once.
_AT_ONCE = 2**22


def mean_interval(
    values: Shaped[np.ndarray, " n"], *, draws: int = 1000, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Lower and upper end of the interval of a mean, by drawing from the values.

    Parameters
    ----------
    values
        One number for each thing that is drawn; at least one.
    draws
        Draws, each with replacement and of as many values as there are.
    seed
        Of the draws.
    level
        Share of the draws within the interval.

    Examples
    --------
    >>> low, high = mean_interval(np.array([0.0, 1.0] * 50))
    >>> (round(low, 1), round(high, 1))
    (0.4, 0.6)
    """
    rng, count = np.random.default_rng(seed), len(values)
    rows = max(1, _AT_ONCE // count)
    sizes = [min(rows, draws - start) for start in range(0, draws, rows)]
    means = [values[rng.integers(0, count, (size, count))].mean(axis=1) for size in sizes]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
