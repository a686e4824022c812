"""The bars of the applications: verdicts follow the numbers, the losing cases are there."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import pytest

from pipeline_lib.bars import (
    MAIN,
    bars_section,
    mass_ratios,
    retrieval_bars,
    segmentation_bars,
    spurious_bars,
)

MODELS = ("a", "b", "c", "d")


def retrieval(gain: float, whole: float = 0.5, leak: float = 0.2) -> pd.DataFrame:
    rows = []
    for model in MODELS:
        for query in ("text", "image"):
            for feature in MAIN:
                for measured in MAIN:
                    asked = measured == feature
                    values = {
                        "components": whole + gain if asked else leak,
                        "representation": whole if asked else 0.3,
                        "chance": 0.1,
                    }
                    rows += [
                        (model, query, feature, measured, method, 10, value)
                        for method, value in values.items()
                        if asked or query == "image"
                    ]
    columns = ["model", "query", "feature", "measured", "method", "k", "precision"]
    return pd.DataFrame(rows, columns=columns).assign(low=0.0, high=1.0)


def segmentation(own: Sequence[float]) -> pd.DataFrame:
    rows = [
        (model, method, value)
        for model, best in zip(MODELS, own, strict=True)
        for method, value in (("decomposition", best), ("gradcam", 0.5), ("uniform", 0.3))
    ]
    table = pd.DataFrame(rows, columns=["model", "method", "miou"])
    return table.assign(protocol="C", low=0.4, high=0.9)


def images(ratio: float) -> pd.DataFrame:
    rows = [
        (model, 0.1 * ratio * weight, 0.1 * weight)
        for model in MODELS
        for weight in (1.0, 2.0, 3.0)
    ]
    table = pd.DataFrame(rows, columns=["model", "mass", "area"])
    return table.assign(protocol="C", method="decomposition")


def spurious(worst: float, average: float, random: float) -> pd.DataFrame:
    rows = []
    for model in MODELS:
        for method, gain in (("full", 0.0), ("ablated", worst), ("random", random)):
            rows.append((model, method, "worst", gain))
            rows.append((model, method, "test", average if method == "ablated" else 0.0))
    table = pd.DataFrame(rows, columns=["model", "method", "group", "gain"])
    return table.assign(components=3.0, accuracy=0.6, gain_low=-0.1, gain_high=0.1)


def test_retrieval_is_met_by_ten_points_and_no_less() -> None:
    rows = retrieval_bars(retrieval(0.12))
    assert [row[2] for row in rows] == ["yes", "yes", "yes"]
    assert "4 of 4 models (a, b, c, d); gains from +12.0 points" in str(rows[0][1])
    assert [row[2] for row in retrieval_bars(retrieval(0.08))] == ["**no**", "**no**", "yes"]
    leaking = retrieval_bars(retrieval(0.12, leak=0.35))[2]
    assert leaking[2] == "**no**" and "0 of 16" in str(leaking[1])


def test_a_ceiling_is_said() -> None:
    row = retrieval_bars(retrieval(0.02, whole=0.97))[0]
    assert row[2] == "**no**"
    assert "at least 97.0%, so that no more than 3.0 points are possible" in str(row[1])


def test_segmentation_and_mass() -> None:
    met = segmentation_bars(segmentation([0.6, 0.6, 0.6, 0.6]), images(2.5))
    assert [row[2] for row in met] == ["yes", "yes"]
    missed = segmentation_bars(segmentation([0.6, 0.6, 0.6, 0.4]), images(1.5))
    assert [row[2] for row in missed] == ["**no**", "**no**"]
    assert "3 of 4 (a, b, c); from -10.0 points to +10.0 points" in str(missed[0][1])
    ratio = mass_ratios(images(2.5)).loc["a"]
    assert ratio[["ratio", "low", "high"]].tolist() == pytest.approx([2.5] * 3)


def test_the_cue_must_go_and_random_components_must_not_do_it() -> None:
    assert [row[2] for row in spurious_bars(spurious(0.12, 0.0, -0.05))] == ["yes"] * 3
    assert [row[2] for row in spurious_bars(spurious(0.05, -0.02, 0.11))] == ["**no**"] * 3


def test_the_section_has_every_model_and_is_empty_without_applications() -> None:
    written: list[list[Sequence[object]]] = []

    def write(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
        written.append(list(rows))
        return f"{len(head)} columns"

    tables = {
        "retrieval": retrieval(0.12),
        "segmentation": segmentation([0.6, 0.6, 0.6, 0.4]),
        "segmentation_images": images(2.5),
        "spurious_summary": spurious(0.12, 0.0, -0.05),
    }
    page = bars_section(tables, write)
    assert page.startswith("## Applications: the bars")
    assert [len(rows) for rows in written] == [16, 16, 16, 4, 4, 8]
    assert bars_section({}, write) == "" == bars_section({"retrieval": pd.DataFrame()}, write)
