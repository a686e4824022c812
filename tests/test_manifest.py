"""Manifests: rows that are never reused, splits that stay, rejected files with reasons."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import FolderData, SplitShares, TableData, WorldData
from pipeline_lib.errors import DataError
from pipeline_lib.listing import list_images, listing_fingerprint
from pipeline_lib.manifest import file_hash, make_manifest, write_shards


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (value, 0, 0)).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images in two classes."""
    root = tmp_path / "photos"
    for number in range(7):
        picture(root / ("cat" if number < 3 else "dog") / f"{number}.png", number)
    return root


def manifest_of(
    root: Path, previous: pd.DataFrame | None = None, **options: Any
) -> tuple[pd.DataFrame, pd.DataFrame]:
    images = list_images(FolderData(source="folder", path=str(root)), root)
    settings = {"shard_size": 3, "shares": SplitShares(), "seed": 0} | options
    return make_manifest(images, root, previous=previous, **settings)


def table_of(root: Path, frame: pd.DataFrame, kind: str = "csv", **columns: Any) -> TableData:
    path = root / f"labels.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    section = {key: columns.pop(key) for key in ("factors", "values") if key in columns}
    return TableData(source="table", path=str(path), columns=columns, **section)


def test_a_folder_of_classes_becomes_rows(folder: Path, tmp_path: Path) -> None:
    (folder / "dog" / "notes.txt").write_text("not an image, and not taken for one")
    picture(folder / ".cache" / "thumb.png", 9)
    manifest, rejected = manifest_of(folder)
    assert list(manifest["row"]) == list(range(7)) and rejected.empty
    assert list(manifest["image_id"][:4]) == ["cat/0.png", "cat/1.png", "cat/2.png", "dog/3.png"]
    assert list(manifest["label"]) == ["cat"] * 3 + ["dog"] * 4
    assert list(manifest["shard"]) == [0, 0, 0, 1, 1, 1, 2]
    assert manifest["active"].all() and set(manifest["width"]) == {5}
    assert manifest["sha256"][4] == file_hash(folder / "dog" / "4.png")
    write_table("manifest", manifest, tmp_path / "m.parquet")
    pd.testing.assert_frame_equal(
        read_table("manifest", tmp_path / "m.parquet")[["row", "image_id", "sha256", "active"]],
        manifest[["row", "image_id", "sha256", "active"]],
        check_dtype=False,
    )


def test_folders_can_be_given_names(folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("cat house cat\ndog hunting dog\n")
    section = FolderData(source="folder", path=str(folder), class_names=str(names))
    assert set(list_images(section, folder)["label"]) == {"house cat", "hunting dog"}
    names.write_text("cat house cat\n")
    with pytest.raises(DataError, match="has no name for 1 folders"):
        list_images(section, folder)


def test_rows_are_kept_appended_and_never_reused(folder: Path) -> None:
    first, _ = manifest_of(folder)
    (folder / "cat" / "1.png").unlink()
    picture(folder / "dog" / "5.png", 99)  # replaced in place
    picture(folder / "ape" / "new.png", 50)  # sorts before all others
    second, _ = manifest_of(folder, first)
    assert list(second["row"]) == list(range(8))
    assert list(second["image_id"][:7]) == list(first["image_id"])
    assert second["image_id"][7] == "ape/new.png"
    assert list(second.loc[~second["active"], "image_id"]) == ["cat/1.png"]
    changed = second["sha256"][:7].to_numpy() != first["sha256"].to_numpy()
    assert list(np.flatnonzero(changed)) == [5]
    picture(folder / "cat" / "1.png", 1)  # comes back
    third, _ = manifest_of(folder, second)
    assert third["active"].all() and third["image_id"][1] == "cat/1.png"
    assert third["sha256"][1] == first["sha256"][1]
    assert list(third["split"][:7]) == list(first["split"])


def test_the_result_does_not_depend_on_the_order_of_discovery(folder: Path) -> None:
    images = list_images(FolderData(source="folder", path=str(folder)), folder)
    pd.testing.assert_frame_equal(
        manifest_of(folder, workers=1)[0], manifest_of(folder, workers=4)[0]
    )
    assert list(images["path"]) == sorted(images["path"])


def test_splits_follow_the_shares_and_the_seed() -> None:
    from pipeline_lib.manifest import _splits

    frame = pd.DataFrame({"image_id": [f"{i}.png" for i in range(4000)], "split": None})
    shares = SplitShares(train=0.5, val=0.3, test=0.2)
    splits = _splits(frame, shares, 0, Path("x"))
    counts = pd.Series(splits).value_counts(normalize=True)
    assert counts["train"] == pytest.approx(0.5, abs=0.03)
    assert counts["val"] == pytest.approx(0.3, abs=0.03)
    assert _splits(frame, shares, 0, Path("x")) == splits
    assert _splits(frame, shares, 1, Path("x")) != splits
    assert _splits(frame[1000:], shares, 0, Path("x")) == splits[1000:]  # whatever else is there
    none = _splits(frame, SplitShares(train=1.0, val=0.0, test=0.0), 0, Path("x"))
    assert set(none) == {"train"}


def test_a_table_brings_its_columns(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "images" / f"{number}.png", number)
        picture(tmp_path / "masks" / f"{number}.png", 255)
    frame = pd.DataFrame(
        {
            "file": [f"images/{i}.png" for i in range(4)],
            "y": [0, 1, 0, 1],
            "place": ["land", "land", "water", None],
            "part": ["0", "0", "1", None],
            "outline": [f"masks/{i}.png" for i in range(3)] + [None],
            "size": [1.5, 2.0, None, 3.0],
        }
    )
    for kind in ("csv", "parquet"):
        dataset = table_of(
            tmp_path, frame, kind, path="file", label="y", split="part", mask="outline",
            group=["y", "place"], factors=["place", "size"],
            values={"y": {0: "landbird", 1: "waterbird"}, "part": {0: "train", 1: "test"}},
        )  # fmt: skip
        images = list_images(dataset, tmp_path)
        manifest, _ = make_manifest(images, tmp_path, shard_size=2, shares=SplitShares(), seed=0)
        assert list(manifest["label"]) == ["landbird", "waterbird"] * 2
        assert list(manifest["group"][:3]) == ["landbird/land", "waterbird/land", "landbird/water"]
        assert pd.isna(manifest["group"][3]) and pd.isna(manifest["mask"][3])
        assert list(manifest["split"][:3]) == ["train", "train", "test"]
        assert manifest["split"][3] in ("train", "val", "test")  # by hash where none is given
        assert list(manifest["size"][:2]) == ["1.5", "2.0"] and pd.isna(manifest["size"][2])
        write_table("manifest", manifest, tmp_path / "m.parquet")
        assert list(read_table("manifest", tmp_path / "m.parquet")["place"][:2]) == ["land"] * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "kind"}, "lacks columns: 'kind': valid: file, label"),
        ({"split": "label"}, "unknown splits a, b; valid: train, val, test"),
        ({"label": "label", "values": {"label": {"a": "x"}}}, "values without a new name: b"),
        ({"values": {"label": {"a": "x"}}}, "names the column 'label', which is not used"),
        ({"factors": ["row"]}, "a name of the manifest's own columns"),
        ({"id": "label"}, "1 image ids stand twice: a"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, change: dict, message: str) -> None:
    for number in range(3):
        picture(tmp_path / f"{number}.png", number)
    frame = pd.DataFrame({"file": ["0.png", "1.png", "2.png"], "label": ["a", "b", "a"]})
    if "factors" in change:
        frame["row"] = "x"
    dataset = table_of(tmp_path, frame, **{"path": "file", **change})
    with pytest.raises(DataError, match=message):
        images = list_images(dataset, tmp_path)
        make_manifest(images, tmp_path, shard_size=2, shares=SplitShares(), seed=0)


def test_an_empty_folder_and_an_empty_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        list_images(FolderData(source="folder", path=str(tmp_path)), tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        list_images(FolderData(source="folder", path="nowhere"), Path("nowhere"))
    dataset = table_of(tmp_path, pd.DataFrame({"file": []}), path="file")
    with pytest.raises(DataError, match="has no rows"):
        list_images(dataset, tmp_path)


def test_bad_files_fail_the_run_with_their_list(folder: Path) -> None:
    jpeg = folder / "cat" / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        jpeg
    )
    jpeg.write_bytes(jpeg.read_bytes()[:1500])
    (folder / "dog" / "text.png").write_text("hello")
    with pytest.raises(DataError) as error:
        manifest_of(folder)
    assert "2 of 9 files cannot be used" in str(error.value)
    assert "cat/cut.jpg: is damaged: image file is truncated" in str(error.value)
    assert "dog/text.png: is no image" in str(error.value)
    manifest, rejected = manifest_of(folder, bad_share=0.25)
    assert len(manifest) == 7 and list(rejected["path"]) == ["cat/cut.jpg", "dog/text.png"]
    with pytest.raises(DataError, match="more than bad_share"):
        manifest_of(folder, bad_share=0.2)


def test_a_folder_of_only_bad_files_fails_whatever_the_share(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(DataError, match="1 of 1 files cannot be used"):
        manifest_of(tmp_path, bad_share=1.0)


def test_an_image_that_turns_bad_leaves_the_data_set(folder: Path) -> None:
    first, _ = manifest_of(folder)
    (folder / "cat" / "0.png").write_text("hello")
    second, rejected = manifest_of(folder, first, bad_share=0.5)
    assert list(rejected["path"]) == ["cat/0.png"]
    assert list(second["active"]) == [False] + [True] * 6


@pytest.mark.parametrize("path", ["../secret.png", "{outside}/secret.png", "link.png"])
def test_paths_may_not_leave_the_folder(tmp_path: Path, path: str) -> None:
    secret = picture(tmp_path / "secret.png", 1)
    root = tmp_path / "data"
    picture(root / "a.png", 1)
    os.symlink(secret, root / "link.png")
    frame = pd.DataFrame({"file": ["a.png", path.format(outside=tmp_path)]})
    dataset = table_of(root, frame, path="file")
    with pytest.raises(DataError, match="leads out of the data set's folder"):
        images = list_images(dataset, root)
        make_manifest(images, root, shard_size=2, shares=SplitShares(), seed=0)


def test_a_missing_mask_is_a_reason(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    dataset = table_of(
        tmp_path, pd.DataFrame({"file": ["a.png"], "m": ["no.png"]}), path="file", mask="m"
    )
    with pytest.raises(DataError, match="its mask no.png is not in"):
        images = list_images(dataset, tmp_path)
        make_manifest(images, tmp_path, shard_size=2, shares=SplitShares(), seed=0)


def test_only_the_shards_that_changed_are_written(folder: Path, tmp_path: Path) -> None:
    first, _ = manifest_of(folder)
    out = tmp_path / "shards"
    assert len(write_shards(first, out)) == 3
    assert write_shards(first, out) == []
    relabelled = first.assign(label="other", split="test")
    assert write_shards(relabelled, out) == []
    picture(folder / "dog" / "4.png", 77)
    second, _ = manifest_of(folder, first)
    assert write_shards(second, out) == [out / "1.parquet"]
    picture(folder / "zebra" / "8.png", 8)
    third, _ = manifest_of(folder, second)
    assert write_shards(third, out) == [out / "2.parquet"]
    assert list(read_table("shard", out / "2.parquet")["row"]) == [6, 7]
    assert set(write_shards(third.assign(shard=0), out)) == {
        out / f"{shard}.parquet" for shard in range(3)
    }
    assert [path.name for path in out.iterdir()] == ["0.parquet"]


def test_the_fingerprint_notices_files_but_not_their_reading(folder: Path) -> None:
    dataset = FolderData(source="folder", path=str(folder))
    before = listing_fingerprint(dataset, folder)
    manifest_of(folder)
    assert listing_fingerprint(dataset, folder) == before
    (folder / "notes.txt").write_text("no image")
    assert listing_fingerprint(dataset, folder) == before
    picture(folder / "dog" / "more.png", 3)
    added = listing_fingerprint(dataset, folder)
    assert added != before
    (folder / "dog" / "more.png").unlink()
    assert listing_fingerprint(dataset, folder) == before
    os.utime(folder / "dog" / "3.png", (1, 1))
    assert listing_fingerprint(dataset, folder) != before


def test_the_fingerprint_of_a_table_follows_the_images_it_names(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    picture(tmp_path / "b.png", 2)
    dataset = table_of(tmp_path, pd.DataFrame({"file": ["a.png", "gone.png"]}), path="file")
    before = listing_fingerprint(dataset, tmp_path)
    picture(tmp_path / "b.png", 3)
    assert listing_fingerprint(dataset, tmp_path) == before
    picture(tmp_path / "gone.png", 3)
    assert listing_fingerprint(dataset, tmp_path) != before


def test_a_rendered_world_brings_all_its_factors(tmp_path: Path) -> None:
    from pipeline_lib.world import write_world

    write_world(tmp_path, 6, seed=3)
    images = list_images(WorldData(source="world", count=6), tmp_path)
    manifest, rejected = make_manifest(images, tmp_path, shard_size=4, shares=SplitShares(), seed=0)
    truth = pd.read_parquet(tmp_path / "table.parquet")
    assert rejected.empty
    for column in ("path", "mask", "split", "label", "caption", "colour", "texture", "scene"):
        assert list(manifest[column]) == list(truth[column])
