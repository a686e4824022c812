"""Image sets on disk: columns, splits, the spurious cue, complete files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline_lib.errors import DataError
from pipeline_lib.world import (
    FACTORS,
    class_of,
    place_of,
    render,
    split_of,
    tables,
    write_spurious,
    write_world,
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return folder, pd.read_parquet(write_world(folder, 30, seed=3, start=5))


@pytest.fixture(scope="module")
def spurious(tmp_path_factory):
    """Tables only need their factors: pictures are not drawn here."""
    folder = tmp_path_factory.mktemp("spurious")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "_write_image", _row_without_picture)
        return pd.read_parquet(write_spurious(folder, n_train=2000, n_test=400, seed=1))


def _row_without_picture(folder, seed, object_scale, index, factors):
    return {"path": f"images/{index}.png", "mask": f"masks/{index}.png", **factors, "caption": ""}


def test_table_has_a_row_and_two_files_for_each_image(world):
    folder, table = world
    assert list(table.columns) == ["path", "mask", "split", "label", *FACTORS, "caption"]
    assert len(table) == 30 and (table["label"] == table["shape"]).all()
    assert list(table["split"]) == [split_of(index) for index in range(5, 35)]
    for path in [*table["path"], *table["mask"]]:
        assert (folder / path).is_file()


def test_files_hold_the_rendered_picture_and_mask(world):
    folder, table = world
    row = table.iloc[4]
    drawn = render({name: row[name] for name in FACTORS}, seed=3, index=9)
    np.testing.assert_array_equal(np.asarray(Image.open(folder / row["path"])), drawn.image)
    mask = np.asarray(Image.open(folder / row["mask"]))
    assert set(np.unique(mask)) == {0, 255}
    np.testing.assert_array_equal(mask == 255, drawn.mask)


def test_workers_and_repetition_give_the_same_files(world, tmp_path):
    folder, table = world
    again = pd.read_parquet(write_world(tmp_path, 30, seed=3, start=5, workers=2))
    pd.testing.assert_frame_equal(table, again)
    assert (folder / "table.parquet").read_bytes() == (tmp_path / "table.parquet").read_bytes()
    name = table["path"][11]
    assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()


def test_train_classes_follow_the_place(spurious):
    train = spurious[spurious["split"] == "train"]
    usual = (train["class"] == "curved") == (train["place"] == "water")
    assert len(train) == 2000
    assert usual.mean() == pytest.approx(0.95, abs=0.001)
    assert (train["class"] == "curved").mean() == pytest.approx(0.5, abs=0.001)


@pytest.mark.parametrize("split, size", [("val", 50), ("test", 100)])
def test_other_splits_are_balanced_over_groups(spurious, split, size):
    counts = spurious.loc[spurious["split"] == split, "group"].value_counts()
    assert counts.to_dict() == {
        f"{kind}-on-{place}": size for kind in ("curved", "angular") for place in ("water", "land")
    }


def test_class_place_and_group_agree_with_the_factors(spurious):
    assert (spurious["class"] == spurious["shape"].map(class_of)).all()
    assert (spurious["place"] == spurious["scene"].map(place_of)).all()
    assert (spurious["label"] == spurious["class"]).all()
    assert (spurious["group"] == spurious["class"] + "-on-" + spurious["place"]).all()


@pytest.mark.parametrize("correlation", [-0.1, 1.5])
def test_an_impossible_correlation_is_refused(tmp_path, correlation):
    with pytest.raises(DataError, match="between 0 and 1"):
        write_spurious(tmp_path, 10, 10, seed=0, correlation=correlation)


def test_all_wrong_numbers_are_named_at_once(tmp_path):
    with pytest.raises(DataError, match="n must be ≥ 1.*start must be ≥ 0"):
        write_world(tmp_path, 0, start=-1)


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write the image set.*choose a folder"):
        write_world(tmp_path / "file" / "world", 1)


def test_a_full_disk_leaves_no_partial_file(tmp_path, monkeypatch):
    def full(pixels, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables, "_save_png", full)
    with pytest.raises(DataError, match="No space left on device; free some space"):
        write_world(tmp_path, 2)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
