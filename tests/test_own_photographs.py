"""A user's own photographs: rows, shards, and what runs again when they change."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from running import (
    SMALL,
    changed,
    jobs_of,
    own_run,
    photograph,
    plan,
    rules_of,
    snakemake,
    write_config,
)

from pipeline_lib.artifacts import read_table
from pipeline_lib.dumps import open_dump


def shard_times(folder: Path) -> dict[str, int]:
    objects = (folder / "results/own/contributions/vit/photos.zarr/coordinates/c").glob("*/0")
    return {path.parts[-2]: path.stat().st_mtime_ns for path in objects}


def dump(folder: Path, jobs: dict[str, int] | None = None) -> set[str]:
    """Run the dumps; gives the shards that were written. All jobs are counted where asked."""
    before = shard_times(folder)
    ran = jobs_of(snakemake(folder, "dumps"))
    assert jobs is None or ran == Counter({**jobs, "dumps": 1}), ran
    assert not plan(folder, "dumps")
    return {shard for shard, time in shard_times(folder).items() if before.get(shard) != time}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = own_run(tmp_path_factory.mktemp("own"))
    assert dump(folder) == {"0", "1", "2"}
    return folder


def test_images_that_come_change_and_go_run_their_shards_only(own: Path) -> None:
    results = own / "results/own"
    photograph(own / "photos/class0/more.png", 77)  # row 10, in the last shard
    photograph(own / "photos/class1/3.png", 78)  # replaced in place: row 6
    first = read_table("manifest", results / "manifest/photos/images.parquet")
    assert dump(own, {"manifest": 1, "contributions": 2, "contributions_store": 1}) == {"1", "2"}
    (own / "photos/class0/0.png").unlink()  # row 0
    assert dump(own, {"manifest": 1, "contributions": 1, "contributions_store": 1}) == {"0"}
    manifest = read_table("manifest", results / "manifest/photos/images.parquet")
    assert list(manifest["image_id"][:10]) == list(first["image_id"])
    assert manifest["image_id"][10] == "class0/more.png" and not manifest["active"][0]
    opened = open_dump(
        results / "contributions/vit/photos.zarr", results / "manifest/photos/images.parquet"
    )
    assert opened.n == 10
    assert np.isfinite(opened.contributions(np.arange(10))).all()


def test_a_hundred_that_come_and_ten_that_go_spare_the_shard_without_any(tmp_path: Path) -> None:
    """Of 150 images in three shards one is replaced (in 0) and ten go (from 1); 100 come."""
    folder = own_run(tmp_path, 150, 50)
    photos, path = folder / "photos", folder / "results/own/manifest/photos/images.parquet"
    assert dump(folder) == {"0", "1", "2"}
    ids = read_table("manifest", path)["image_id"].tolist()
    photograph(photos / ids[7], 1000)
    for name in ids[60:70]:
        (photos / name).unlink()
    for number in range(150, 250):
        photograph(photos / "class0" / f"{number}.png", number)
    jobs = {"manifest": 1, "contributions": 4, "contributions_store": 1}
    assert dump(folder, jobs) == {"0", "1", "3", "4"}
    manifest = read_table("manifest", path)
    assert (len(manifest), manifest["active"].sum()) == (250, 240)
    assert manifest["image_id"].tolist()[:150] == ids


def test_touched_and_moved_photographs_are_not_dumped_again(own: Path) -> None:
    jobs = {"manifest": 1, "contributions_store": 1}
    for path in (own / "photos").rglob("*.png"):
        os.utime(path)
    assert dump(own, jobs) == set()
    (own / "photos").rename(own / "elsewhere")
    write_config(own, changed(SMALL, "datasets.photos.path", "elsewhere"))
    assert dump(own, jobs) == set()
    (own / "elsewhere").rename(own / "photos")
    write_config(own, SMALL)
    assert dump(own) == set()


def test_labels_that_change_are_no_reason_to_dump(tmp_path: Path) -> None:
    own = own_run(tmp_path)
    table = own / "photos" / "labels.csv"
    names = sorted(path.relative_to(table.parent) for path in table.parent.rglob("*.png"))
    table.write_text("file,kind\n" + "".join(f"{name},a\n" for name in names))
    columns = {"path": "file", "label": "kind"}
    data = {"source": "table", "path": "photos/labels.csv", "columns": columns}
    write_config(own, changed(SMALL, "datasets.photos", data))
    assert dump(own) == {"0", "1", "2"}
    table.write_text(table.read_text().replace("3.png,a", "3.png,b"))
    assert snakemake(own, "results/own/manifest/photos/images.parquet").returncode == 0
    manifest = read_table("manifest", own / "results/own/manifest/photos/images.parquet")
    assert (manifest["label"] == "b").sum() == 1
    assert rules_of(plan(own, "dumps")) == {"contributions_store"}


def test_another_size_of_shards_is_another_layout(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "copy", copy_function=shutil.copy2)
    write_config(tmp_path / "copy", changed(SMALL, "contributions.shard_size", 6))
    jobs = {"manifest": 1, "bases": 1, "contributions": 2, "contributions_store": 1}
    assert dump(tmp_path / "copy", jobs) == {"0", "1"}
    assert set(shard_times(tmp_path / "copy")) == {"0", "1"}
