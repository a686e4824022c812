"""Images in tar files and Hugging Face data sets: as those of a folder, or refused with reasons."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image
from running import SMALL, changed, plan, rules_of, snakemake, write_config

from pipeline_lib.artifacts import read_table
from pipeline_lib.config import HuggingFaceData, SplitShares, TableData, WebDatasetData
from pipeline_lib.containers import _open_rows, container, content_exists, read_content
from pipeline_lib.dumps import open_dump
from pipeline_lib.errors import DataError
from pipeline_lib.images import read_image
from pipeline_lib.listing import list_images, listing_fingerprint
from pipeline_lib.manifest import make_manifest
from pipeline_lib.segmentation import read_mask

COUNT = 8


def png(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, size=(12, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    return buffer.getvalue()


def mask_png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (10, 12), seed).save(buffer, "PNG")
    return buffer.getvalue()


def label(number: int) -> str:
    return ("cat", "dog")[number % 2]


def add(archive: tarfile.TarFile, name: str, content: bytes, **facts: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in facts.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def sample(archive: tarfile.TarFile, number: int) -> None:
    key = f"{number:04}"
    add(archive, f"{key}.png", png(number))
    add(archive, f"{key}.seg.png", mask_png(number + 1))
    add(archive, f"{key}.cls", str(number % 2).encode())
    add(archive, f"{key}.txt", f"a {label(number)}\n".encode())
    facts = {"place": {"name": "sea" if number < 3 else None}, "kind": label(number)}
    add(archive, f"{key}.json", json.dumps(facts).encode())


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two tar files of four samples each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:06}.tar", "w") as archive:
            for number in range(4 * shard, 4 * shard + 4):
                sample(archive, number)
    return folder


def tars(path: Path, **options: Any) -> WebDatasetData:
    columns = {"image": "png", "mask": "seg.png", "caption": "txt", "label": "cls"}
    section = {"columns": columns, "values": {"cls": {"0": "cat", "1": "dog"}}} | options
    return WebDatasetData(source="webdataset", path=str(path), **section)


def rows_of(count: int = COUNT, **more: Any) -> datasets.Dataset:
    columns = {
        "image": [{"bytes": png(n), "path": None} for n in range(count)],
        "mask": [{"bytes": mask_png(n + 1), "path": None} for n in range(count)],
        "label": [n % 2 for n in range(count)],
        "text": [f"a {label(n)}" for n in range(count)],
        "count": list(range(count)),
    }
    features = datasets.Features(
        image=datasets.Image(), mask=datasets.Image(),
        label=datasets.ClassLabel(names=["cat", "dog"]),
        text=datasets.Value("string"), count=datasets.Value("int64"),
    )  # fmt: skip
    return datasets.Dataset.from_dict(columns | more, features=features)


def saved(path: Path, **options: Any) -> HuggingFaceData:
    columns = {"mask": "mask", "caption": "text", "label": "label"}
    section = {"columns": columns, "factors": ["count"]} | options
    return HuggingFaceData(source="huggingface", path=str(path), **section)


def manifest_of(dataset: Any, root: Path, **options: Any) -> Any:
    settings = {"shard_size": 3, "shares": SplitShares(), "seed": 0} | options
    return make_manifest(list_images(dataset, root), root, **settings)


# What is said of the images


def test_tar_files_become_rows(shards: Path) -> None:
    dataset = tars(shards, factors=["json.place.name", "json.kind", "__key__"])
    manifest, rejected = manifest_of(dataset, shards)
    assert rejected.empty and len(manifest) == COUNT
    assert list(manifest["path"][3:5]) == ["000000.tar/0003.png", "000001.tar/0004.png"]
    assert list(manifest["label"]) == [label(n) for n in range(COUNT)]
    assert list(manifest["json.kind"]) == list(manifest["label"])
    assert list(manifest["caption"]) == [f"a {label(n)}" for n in range(COUNT)]
    assert list(manifest["json.place.name"])[:4] == ["sea"] * 3 + [None]
    assert manifest["__key__"][5] == "0005"
    for number, row in enumerate(manifest.itertuples()):
        assert read_content(shards / row.path) == png(number)
        mask = np.asarray(read_mask(shards / row.mask, (10, 12)))
        assert (mask == number + 1).all()


def test_a_single_tar_file_is_a_data_set_too(shards: Path) -> None:
    dataset = tars(shards / "000001.tar", columns={"image": "png", "id": "__key__"}, values={})
    manifest, _ = manifest_of(dataset, shards)
    assert list(manifest["image_id"]) == ["0004", "0005", "0006", "0007"]


def test_classes_of_tar_files_can_be_given_names(shards: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("0 house cat\n1 hunting dog\n")
    dataset = tars(shards, values={}, class_names=str(names))
    assert set(list_images(dataset, shards)["label"]) == {"house cat", "hunting dog"}


def test_a_saved_data_set_becomes_rows(tmp_path: Path) -> None:
    rows_of().save_to_disk(str(tmp_path / "pets"))
    manifest, rejected = manifest_of(saved(tmp_path / "pets"), tmp_path / "pets")
    assert rejected.empty and len(manifest) == COUNT
    assert list(manifest["label"]) == [label(n) for n in range(COUNT)]
    assert list(manifest["count"]) == [str(n) for n in range(COUNT)]
    for number, row in enumerate(manifest.itertuples()):
        assert read_content(tmp_path / "pets" / row.path) == png(number)
        mask = np.asarray(read_mask(tmp_path / "pets" / row.mask, (10, 12)))
        assert (mask == number + 1).all()


def test_splits_of_a_saved_data_set_are_its_splits(tmp_path: Path) -> None:
    parts = {"train": rows_of(3), "validation": rows_of(2), "test": rows_of(1)}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "pets"))
    manifest, _ = manifest_of(saved(tmp_path / "pets"), tmp_path / "pets")
    by_folder = manifest["path"].str.partition("/")[0]
    assert dict(zip(by_folder, manifest["split"])) == {
        "train": "train", "validation": "val", "test": "test"
    }  # fmt: skip


def test_a_table_may_name_members_of_a_tar_file(shards: Path) -> None:
    (shards / "labels.csv").write_text("file,kind\n000000.tar/0001.png,dog\n")
    section = {"path": str(shards / "labels.csv"), "columns": {"path": "file", "label": "kind"}}
    dataset = TableData(source="table", **section)
    manifest, rejected = manifest_of(dataset, shards)
    assert rejected.empty and list(manifest["label"]) == ["dog"]
    before = listing_fingerprint(dataset, shards)
    os.utime(shards / "000000.tar")
    assert listing_fingerprint(dataset, shards) != before


# The same dump as from a folder


@pytest.fixture(scope="module")
def three_ways(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of the same images in a folder, in tar files, and in a saved data set."""
    folder = tmp_path_factory.mktemp("ways")
    (folder / "files").mkdir()
    for number in range(COUNT):
        (folder / f"files/{number:04}.png").write_bytes(png(number))
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars/0.tar", "w") as archive:
        for number in range(COUNT):
            sample(archive, number)
    rows_of().save_to_disk(str(folder / "saved"))
    content = changed(SMALL, "contributions.datasets", ["files", "tars", "saved"])
    content["datasets"] = {
        "files": {"source": "folder", "path": "files"},
        "tars": {"source": "webdataset", "path": "tars", "columns": {"image": "png"}},
        "saved": {"source": "huggingface", "path": "saved"},
    }
    write_config(folder, content)
    done = snakemake(folder, "dumps")
    assert done.returncode == 0, done.stderr[-6000:]
    return folder


@pytest.mark.parametrize("kind", ["tars", "saved"])
def test_the_dump_is_that_of_the_same_files(three_ways: Path, kind: str) -> None:
    results = three_ways / "results/own"
    tables = [results / f"manifest/{name}/images.parquet" for name in ("files", kind)]
    first, other = (read_table("manifest", table) for table in tables)
    assert list(first["sha256"]) == list(other["sha256"])
    dumps = [
        open_dump(results / f"contributions/vit/{name}.zarr", table)
        for name, table in zip(("files", kind), tables)
    ]
    index = np.arange(COUNT)
    first_values, other_values = (dump.contributions(index) for dump in dumps)
    assert np.abs(first_values).max() > 0
    np.testing.assert_array_equal(first_values, other_values)


def test_what_joins_a_tar_file_or_a_data_set_runs_its_shards_only(three_ways: Path) -> None:
    assert not plan(three_ways, "dumps")
    with tarfile.open(three_ways / "tars/1.tar", "w") as archive:
        sample(archive, COUNT)  # row 8: a third shard of four
    assert rules_of(plan(three_ways, "dumps")) == {"manifest"}
    done = snakemake(three_ways, "dumps")
    assert done.returncode == 0, done.stderr[-6000:]
    shards = three_ways / "results/own/contributions/vit/tars.shards"
    assert sorted(path.stem for path in shards.glob("*.parquet")) == ["0", "1", "2"]
    times = {path.stem: path.stat().st_mtime_ns for path in shards.glob("*.parquet")}
    assert max(times, key=times.__getitem__) == "2"
    assert times["0"] < (three_ways / "tars/1.tar").stat().st_mtime_ns
    assert not plan(three_ways, "dumps")


def test_the_command_line_reads_members(three_ways: Path) -> None:
    picture = read_image(three_ways / "tars/0.tar/0003.png")
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(png(3)))))
    np.testing.assert_array_equal(
        np.asarray(read_image(three_ways / "saved/image/3")), np.asarray(picture)
    )


# What is refused


def rejected_of(archive: Path, **options: Any) -> dict[str, str]:
    dataset = tars(archive, columns={}, values={}, **options)
    _, rejected = manifest_of(dataset, archive.parent, bad_share=0.9)
    return dict(zip(rejected["path"], rejected["reason"]))


def test_members_that_are_no_images_are_listed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "good.png", png(0))
        add(archive, "text.jpg", b"no image")
        add(archive, "half.png", png(1)[:60])
        add(archive, "README.md", b"passed over")
    found = rejected_of(tmp_path / "a.tar")
    assert found.pop("a.tar/text.jpg") == "is no image in a format that can be read"
    assert found.pop("a.tar/half.png").startswith("is damaged")
    assert not found


@pytest.mark.parametrize(
    "name", ["/etc/secret.png", "../secret.png", "a/../../secret.png", "a\\b.png"]
)
def test_unsafe_names_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(png(9))
    (tmp_path / "data/secret.png").write_bytes(png(9))
    with tarfile.open(tmp_path / "data/a.tar", "w") as archive:
        add(archive, "good.png", png(0))
        add(archive, name, png(1))
    (reason,) = rejected_of(tmp_path / "data/a.tar").values()
    assert reason.startswith("has an unsafe name") or reason.startswith("leads out of")


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(png(9))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "good.png", png(0))
        add(archive, "soft.png", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path / "outside.png"))
        add(archive, "hard.png", b"", type=tarfile.LNKTYPE, linkname="good.png")
    found = rejected_of(tmp_path / "a.tar")
    assert set(found) == {"a.tar/soft.png", "a.tar/hard.png"}
    assert all("link" in reason for reason in found.values())


def test_names_that_are_no_text_are_listed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        add(archive, "good.png", png(0))
        add(archive, os.fsdecode(b"\xff\xfe.png"), png(1))
    assert rejected_of(tmp_path / "a.tar") == {"a.tar/\\udcff\\udcfe.png": "its name is no UTF-8"}


def test_a_member_that_is_cut_off_is_listed(tmp_path: Path) -> None:
    whole = tmp_path / "a.tar"
    with tarfile.open(whole, "w") as archive:
        add(archive, "0.png", png(0))
        add(archive, "1.png", png(1))
    with tarfile.open(whole) as archive:
        start = archive.getmember("1.png").offset_data
    whole.write_bytes(whole.read_bytes()[: start + 100])
    assert "is cut off" in rejected_of(whole)["a.tar/1.png"]
    whole.write_bytes(whole.read_bytes()[: start - 512])  # between two members
    with pytest.raises(DataError, match="cut off or damaged after '0.png'"):
        rejected_of(whole)


def test_archives_that_cannot_be_read_in_place_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        add(archive, "0.png", png(0))
    with pytest.raises(DataError, match="must be decompressed first"):
        rejected_of(tmp_path / "a.tar")
    (tmp_path / "a.tar").rename(tmp_path / "a.tar.gz")
    with pytest.raises(DataError, match=r"holds no \.tar file"):
        list_images(tars(tmp_path), tmp_path)


def test_a_tar_file_that_changed_since_is_noticed(shards: Path) -> None:
    manifest, _ = manifest_of(tars(shards), shards)
    first = shards / manifest["path"][0]
    read_image(first, manifest["sha256"][0])
    with tarfile.open(shards / "000000.tar", "w") as archive:
        add(archive, "0000.png", png(77))
    with pytest.raises(DataError, match="has changed since"):
        read_image(first, manifest["sha256"][0])
    with pytest.raises(DataError, match="has no such member"):
        read_image(shards / manifest["path"][1])


def test_mistakes_in_names_are_answered(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample has 'clss'; did you mean cls"):
        list_images(tars(shards, columns={"image": "png", "label": "clss"}, values={}), shards)
    with pytest.raises(DataError, match=r"several images \(png, seg.png\)"):
        list_images(tars(shards, columns={"label": "cls"}, values={}), shards)
    rows_of().save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(DataError, match="lacks columns: 'lable': did you mean label"):
        list_images(saved(tmp_path / "pets", columns={"label": "lable"}), tmp_path / "pets")
    with pytest.raises(DataError, match="no encoded images"):
        list_images(saved(tmp_path / "pets", columns={"image": "text"}), tmp_path / "pets")
    with pytest.raises(DataError, match="is no Hugging Face data set on disk"):
        list_images(saved(shards), shards)


def test_an_image_beside_the_rows_must_stay_in_their_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    paths = [{"bytes": None, "path": str(tmp_path / "secret.png")}] + [
        {"bytes": png(n), "path": None} for n in range(1, 4)
    ]
    columns = {"image": paths}
    table = datasets.Dataset.from_dict(
        columns,
        features=datasets.Features(
            image={"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        ),
    )
    table.save_to_disk(str(tmp_path / "pets"))
    info = tmp_path / "pets/dataset_info.json"
    facts = json.loads(info.read_text())
    facts["features"] = {"image": {"_type": "Image"}}
    info.write_text(json.dumps(facts))
    dataset = HuggingFaceData(source="huggingface", path=str(tmp_path / "pets"))
    _, rejected = manifest_of(dataset, tmp_path / "pets", bad_share=0.5)
    assert list(rejected["path"]) == ["image/0"]
    assert "leads out of the data set's folder" in rejected["reason"][0]


def test_without_the_package_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_of(2).save_to_disk(str(tmp_path / "pets"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    _open_rows.cache_clear()
    with pytest.raises(DataError, match="pip install"):
        list_images(saved(tmp_path / "pets"), tmp_path / "pets")


def test_paths_that_lead_nowhere(shards: Path) -> None:
    assert container(shards / "000000.tar/0000.png") == shards / "000000.tar"
    assert container(shards / "absent/0000.png") is None
    assert content_exists(shards / "000000.tar/0000.seg.png")
    assert not content_exists(shards / "000000.tar/0009.seg.png")
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_content(shards / "absent.png")


def test_the_sections_are_those_of_the_reference() -> None:
    text = "source: webdataset\npath: shards\ncolumns: {label: cls}\nfactors: [json.kind]"
    assert WebDatasetData(**yaml.safe_load(text)).columns.label == "cls"
