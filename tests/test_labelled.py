"""A dump as a labelled array: one line to open, and only what is asked for is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_store import RANKS, arrays, components, contributions_of, make, manifest

from pipeline_lib import open_contributions
from pipeline_lib.artifacts import write_table
from pipeline_lib.dumps import Dump, components_path


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, np.ndarray]:
    """A run with one dump, two images of which have left, and its contributions."""
    values = arrays()
    for array in values.values():
        array[[4, 11]] = np.nan
    store = tmp_path / "contributions" / "vit" / "world.zarr"
    make(store, values)
    table = manifest(23, removed=(4, 11))
    table["label"] = ["even" if row % 2 == 0 else "odd" for row in table["row"]]
    write_table("manifest", table, tmp_path / "manifest" / "world" / "images.parquet")
    write_table("components", components(len(RANKS)), components_path(store))
    rows = np.setdiff1d(np.arange(23), [4, 11])
    return store, contributions_of(values)[rows]


def test_names_and_numbers_are_those_of_the_dump(run: tuple[Path, np.ndarray]) -> None:
    store, expected = run
    dump = open_contributions(store)
    assert dict(dump.sizes) == {"image": 21, "component": 6, "direction": 6, "class": 3}
    assert set(dump.coords) >= {"image", "component", "label", "kind", "head"}
    np.testing.assert_allclose(dump.contributions.values, expected, rtol=1e-6)
    one = dump.contributions.sel(image="7.png", component="c3").values
    np.testing.assert_allclose(one, expected[6, 3], rtol=1e-6)
    part = dump.contributions.isel(image=[20, 3], component=slice(1, 4), direction=2)
    np.testing.assert_allclose(part.values, expected[[20, 3], 1:4, 2], rtol=1e-6)
    means = dump.contributions.groupby("label").mean("image").sel(label="odd")
    odd = [int(name.removesuffix(".png")) % 2 == 1 for name in dump.image.values]
    np.testing.assert_allclose(means.values, expected[odd].mean(axis=0), rtol=1e-4, atol=1e-6)


def test_only_what_is_asked_for_is_read(
    run: tuple[Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[list[int], list[int]]] = []
    original = Dump.contributions

    def watched(self: Dump, index: Any, chosen: Sequence[int] | None = None) -> np.ndarray:
        read.append((list(index), list(chosen or [])))
        return original(self, index, chosen)

    monkeypatch.setattr(Dump, "contributions", watched)
    dump = open_contributions(run[0])
    assert read == []
    dump.contributions.isel(image=[2, 5], component=[4]).load()
    assert read == [([2, 5], [4])]
