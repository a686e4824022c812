"""Intervals of means: those of scipy, and the same for values too many to draw at once."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import bootstrap

from pipeline_lib import intervals
from pipeline_lib.intervals import mean_interval


def test_ends_are_those_of_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=200)
    wanted = bootstrap((values,), np.mean, method="percentile", n_resamples=9999, rng=2)
    found = mean_interval(values, draws=9999)
    assert found == pytest.approx(wanted.confidence_interval, abs=0.01)
    narrow = mean_interval(values, level=0.5)
    assert found[0] < narrow[0] < values.mean() < narrow[1] < found[1]


def test_many_values_are_drawn_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(3).random(50) < 0.3
    whole = mean_interval(values)
    monkeypatch.setattr(intervals, "_AT_ONCE", 120)
    assert mean_interval(values) == whole
    assert mean_interval(np.ones(7)) == (1.0, 1.0)
