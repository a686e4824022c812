"""Stores: whole shards, exact reading, damage named, nothing half-written."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr

from pipeline_lib.artifacts import STORES, write_table
from pipeline_lib.dumps import components_path, open_dump, open_features
from pipeline_lib.errors import ArtifactError
from pipeline_lib.store import Store, shard_object, write_layout, write_shard

SIZES = {"n": 23, "d": 6, "k": 3, "r": 26, "b": 2}

#: Six components: the second and the fourth have one direction, the others are stored whole.
RANKS = (6, 1, 6, 1, 6, 6)
SHARD = 10
SHARDS = (0, 1, 2)


def arrays(sizes: dict[str, int] = SIZES, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays of a whole dump."""
    rng = np.random.default_rng(seed)
    return {
        array.name: rng.normal(size=[sizes[axis] for axis in array.axes]).astype("float32")
        for array in STORES["contributions"]
        if array.per_image
    }


def bases() -> np.ndarray:
    """Two directions of length one."""
    rows = np.random.default_rng(1).normal(size=(SIZES["b"], SIZES["d"]))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("float32")


def contributions_of(values: dict[str, np.ndarray]) -> np.ndarray:
    """Contributions [n, c, d] spelled out by hand from coordinates and directions."""
    x, (first, second) = values["coordinates"], bases()
    parts = [x[:, 0:6], x[:, 6:7] * first, x[:, 7:13], x[:, 13:14] * second, x[:, 14:20], x[:, 20:]]
    return np.stack(parts, axis=1)


def part(values: dict[str, np.ndarray], shard: int) -> dict[str, np.ndarray]:
    return {name: array[shard * SHARD : (shard + 1) * SHARD] for name, array in values.items()}


def make(path: Path, values: dict[str, np.ndarray], shards: tuple[int, ...] = SHARDS) -> None:
    for shard in shards:
        write_shard(path, "contributions", shard, part(values, shard), shard_size=SHARD)
    layout = {"shard_size": SHARD, "shared": {"bases": bases()}}
    write_layout(path, "contributions", SIZES, **layout)


def manifest(n: int, removed: tuple[int, ...] = ()) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "row": range(n),
            "image_id": [f"{i}.png" for i in range(n)],
            "path": [f"{i}.png" for i in range(n)],
            "active": [i not in removed for i in range(n)],
            "sha256": "0",
            "width": 8,
            "height": 8,
            "shard": [i // SHARD for i in range(n)],
            **dict.fromkeys(["split", "label", "group", "mask", "caption"]),
        }
    )


def components(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "component": range(count),
            "id": [f"c{i}" for i in range(count)],
            "kind": "head",
            **dict.fromkeys(["layer", "stage", "block", "head"], 0),
            "module": "m",
            "tokens": 1,
            "rank": RANKS[:count],
        }
    )


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A disk that takes no file above `size` bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "world.zarr"


@pytest.mark.parametrize("block", [1, 2**24], ids=["chunk by chunk", "at once"])
def test_what_is_written_is_read_exactly_in_any_order(
    store: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline_lib.store.BLOCK_BYTES", block)
    values = arrays()
    make(store, values)
    rows = np.array([22, 0, 9, 10, 10, 3])
    opened = Store(store, "contributions")
    for name, expected in values.items():
        np.testing.assert_array_equal(opened.read(name, rows), expected[rows])
    picked = opened.read("coordinates", rows, [10, 0, 7])
    np.testing.assert_array_equal(picked, values["coordinates"][rows][:, [10, 0, 7]])
    np.testing.assert_array_equal(opened.read_shared("bases"), bases())
    assert opened.read("error", np.zeros(0, dtype=int)).shape == (0,)


def test_every_array_of_a_shard_is_one_file_where_it_is_said_to_be(store: Path) -> None:
    make(store, arrays(), shards=(1,))
    written = {str(path) for path in store.glob("*/c/**/*") if path.is_file()}
    names = [array.name for array in STORES["contributions"] if array.per_image]
    objects = {shard_object(store, "contributions", name, 1) for name in names}
    assert written == objects | {shard_object(store, "contributions", "bases", 0)}


def test_a_shard_without_any_value_is_a_file_too(store: Path) -> None:
    empty = {name: np.full_like(array, np.nan) for name, array in arrays().items()}
    make(store, empty, shards=(0,))
    assert Path(shard_object(store, "contributions", "coordinates", 0)).is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"error": np.zeros(SHARD - 1, dtype="float32")}, "axis 'n' of 'error' has 9 entries"),
        ({"error": np.zeros((SHARD, 1), dtype="float32")}, "'error' must have the axes"),
        ({"eror": np.zeros(SHARD, dtype="float32")}, "must have the arrays"),
        (
            {"coordinates": np.zeros((SHARD, 6, 6), dtype="float32")},
            "'coordinates' must have the axes",
        ),
    ],
)
def test_what_is_no_shard_is_refused(store: Path, change: dict, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        write_shard(store, "contributions", 0, part(arrays(), 0) | change, shard_size=SHARD)
    with pytest.raises(ArtifactError, match="a shard has 1 to 9 rows, got 10"):
        write_shard(store, "contributions", 0, part(arrays(), 0), shard_size=9)
    with pytest.raises(ArtifactError, match="must have the arrays"):
        write_shard(store, "contributions", 0, {}, shard_size=SHARD)
    assert not store.exists()


def test_a_missing_shard_is_named_with_its_repair(store: Path) -> None:
    values = arrays()
    make(store, values, shards=(0, 2))
    opened = Store(store, "contributions")
    with pytest.raises(ArtifactError) as error:
        opened.read("representation", np.array([5, 12]))
    assert "representation/c/1/0 lacks 1 of the 2 rows" in str(error.value)
    assert f"rm -f {shard_object(store, 'contributions', 'coordinates', 1)}" in str(error.value)
    np.testing.assert_array_equal(opened.read("error", np.array([5])), values["error"][[5]])


@pytest.mark.parametrize("how", ["truncated", "one bit", "empty"])
def test_damage_is_found_named_and_repaired_by_writing_again(store: Path, how: str) -> None:
    values = arrays()
    make(store, values)
    victim = Path(shard_object(store, "contributions", "coordinates", 1))
    content = bytearray(victim.read_bytes())
    if how == "one bit":
        content[len(content) // 3] ^= 1
    victim.write_bytes(bytes(content[: {"truncated": len(content) // 2, "empty": 0}.get(how)]))
    with pytest.raises(ArtifactError, match="coordinates/c/1/0 (is damaged|lacks)"):
        Store(store, "contributions").read("coordinates", np.arange(10, 20))
    write_shard(store, "contributions", 1, part(values, 1), shard_size=SHARD)
    read = Store(store, "contributions").read("coordinates", np.arange(23))
    np.testing.assert_array_equal(read, values["coordinates"])


@pytest.mark.parametrize("seed", range(40))
def test_damage_at_any_place_is_found_with_its_shard(store: Path, seed: int) -> None:
    """In a random object a random bit flips, or all behind a random place is cut off."""
    make(store, values := arrays())
    rng = np.random.default_rng(seed)
    name, shard = str(rng.choice(sorted(values))), int(rng.choice(SHARDS))
    victim = Path(shard_object(store, "contributions", name, shard))
    content = bytearray(victim.read_bytes())
    place = int(rng.integers(len(content)))
    content[place] ^= 1 << int(rng.integers(8))
    victim.write_bytes(bytes(content if seed % 2 else content[:place]))
    rows = np.arange(SIZES["n"])
    with pytest.raises(ArtifactError, match=rf"{name}/c/{shard}\b.* shard {shard}\.") as error:
        Store(store, "contributions").read(name, rows)
    assert f"rm -f {shard_object(store, 'contributions', 'coordinates', shard)}" in str(error.value)
    others = rows[rows // SHARD != shard]
    read = Store(store, "contributions").read(name, others)
    np.testing.assert_array_equal(read, values[name][others])


def test_damaged_bases_are_found_named_and_repaired_without_a_shard(store: Path) -> None:
    make(store, arrays())
    victim = Path(shard_object(store, "contributions", "bases", 0))
    content = bytearray(victim.read_bytes())
    content[len(content) // 3] ^= 1
    victim.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match="bases/c/0/0 is damaged") as error:
        Store(store, "contributions").read_shared("bases")
    assert f"rm -f {store / 'zarr.json'} && snakemake" in str(error.value)
    victim.unlink()
    with pytest.raises(ArtifactError, match="bases/c/0/0 is missing"):
        Store(store, "contributions").read_shared("bases")


def test_more_rows_touch_no_shard(store: Path) -> None:
    values = arrays()
    make(store, values)
    paths = list(store.glob("*/c/**/0"))
    objects = {path: path.stat().st_mtime_ns for path in paths if "bases" not in path.parts}
    write_layout(store, "contributions", {**SIZES, "n": 37}, shard_size=SHARD)
    assert {path: path.stat().st_mtime_ns for path in objects} == objects
    opened = Store(store, "contributions")
    assert opened.rows == 37
    read = opened.read("coordinates", np.arange(23))
    np.testing.assert_array_equal(read, values["coordinates"])
    with pytest.raises(ArtifactError, match="lacks 1 of"):
        opened.read("coordinates", np.array([23]))


def test_shards_beyond_the_last_row_are_removed(store: Path) -> None:
    make(store, arrays())
    write_layout(store, "contributions", {**SIZES, "n": 20}, shard_size=SHARD)
    assert sorted(path.parts[-2] for path in store.glob("representation/c/*/0")) == ["0", "1"]


def test_a_shard_does_not_depend_on_how_many_there_are(store: Path, tmp_path: Path) -> None:
    """Written before, after or without the metadata, alone or again: the same bytes."""
    make(store, arrays())
    write_shard(tmp_path / "b.zarr", "contributions", 1, part(arrays(), 1), shard_size=SHARD)
    for name in arrays():
        paths = [shard_object(s, "contributions", name, 1) for s in (store, tmp_path / "b.zarr")]
        assert Path(paths[0]).read_bytes() == Path(paths[1]).read_bytes()


def test_an_optional_array_is_left_out_where_its_axis_is_not_named(store: Path) -> None:
    sizes = {axis: size for axis, size in SIZES.items() if axis != "k"}
    make(store, arrays())
    write_layout(store, "contributions", sizes, shard_size=SHARD)
    assert "logits" not in Store(store, "contributions").arrays
    assert not list(store.glob("logits/c/*/0"))
    without = {name: values for name, values in part(arrays(), 0).items() if name != "logits"}
    make(store, arrays())
    write_shard(store, "contributions", 0, without, shard_size=SHARD)
    assert not Path(shard_object(store, "contributions", "logits", 0)).exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_read_back_as_float32(store: Path, dtype: str) -> None:
    """PyTorch rounds to the same numbers."""
    values = arrays()
    half = {"shard_size": SHARD, "dtype": dtype}
    write_shard(store, "contributions", 0, part(values, 0), **half)
    write_layout(store, "contributions", SIZES, **half)
    read = Store(store, "contributions").read("coordinates", np.arange(SHARD))
    assert read.dtype == np.float32
    expected = torch.from_numpy(values["coordinates"][:SHARD]).to(getattr(torch, dtype)).float()
    np.testing.assert_array_equal(read, expected.numpy())


def test_rows_that_left_are_missing_in_bfloat16_too(store: Path) -> None:
    values = arrays()
    values["coordinates"][4] = np.nan
    brain = {"shard_size": SHARD, "dtype": "bfloat16"}
    write_shard(store, "contributions", 0, part(values, 0), **brain)
    write_layout(store, "contributions", SIZES, **brain)
    opened = Store(store, "contributions")
    assert np.isfinite(opened.read("coordinates", np.array([3, 5]))).all()
    with pytest.raises(ArtifactError, match="lacks 1 of the 1 rows"):
        opened.read("coordinates", np.array([4]))


def test_a_store_of_another_kind_or_layout_is_refused(store: Path) -> None:
    with pytest.raises(ArtifactError, match="run snakemake"):
        Store(store, "contributions")
    make(store, arrays(), shards=())
    with pytest.raises(ArtifactError, match="store of 'contributions'"):
        Store(store, "features")
    group = zarr.open_group(store)
    del group["error"]
    with pytest.raises(ArtifactError, match="'error' is missing"):
        Store(store, "contributions")


@pytest.mark.parametrize("limit", [0, 100, 1_000, 10_000, 100_000, 200_000])
def test_a_full_disk_leaves_nothing_of_the_shard(store: Path, limit: int) -> None:
    big = part(arrays({**SIZES, "r": 20_000}), 0)
    with file_size_limit(limit), pytest.raises(ArtifactError, match="nothing of shard 0 was"):
        write_shard(store, "contributions", 0, big, shard_size=SHARD)
    assert [path for path in store.glob("*/c/**/*") if path.is_file()] == []


@pytest.fixture
def dump(store: Path) -> tuple[Path, dict[str, np.ndarray]]:
    values = arrays()
    for array in values.values():
        array[[4, 11]] = np.nan  # rows of images that left the data set
    make(store, values)
    write_table("manifest", manifest(23, removed=(4, 11)), store.parent / "images.parquet")
    write_table("components", components(len(RANKS)), components_path(store))
    return store, values


def test_a_dump_shows_active_images_only(dump: tuple[Path, dict[str, np.ndarray]]) -> None:
    store, values = dump
    opened = open_dump(store, store.parent / "images.parquet")
    rows = np.setdiff1d(np.arange(23), [4, 11])
    assert opened.n == 21 and opened.width == 6 and opened.has_logits
    assert list(opened.manifest["row"]) == list(rows)
    index = np.array([20, 4, 0])
    expected = contributions_of(values)[rows[index]]
    np.testing.assert_allclose(opened.contributions(index), expected, rtol=1e-6)
    np.testing.assert_allclose(opened.contributions(index, [3, 0]), expected[:, [3, 0]], rtol=1e-6)
    np.testing.assert_array_equal(opened.coordinates(index), values["coordinates"][rows[index]])
    np.testing.assert_array_equal(opened.logits(index), values["logits"][rows[index]])
    seen = np.concatenate([opened.representation(batch) for batch in opened.batches(4)])
    np.testing.assert_array_equal(seen, values["representation"][rows])
    assert np.isfinite(opened.error(np.arange(21))).all()
    with pytest.raises(IndexError, match="0 to 20"):
        opened.error([21])


def test_a_dump_that_does_not_belong_to_its_tables_is_refused(
    dump: tuple[Path, dict[str, np.ndarray]],
) -> None:
    store, _ = dump
    write_table("manifest", manifest(24), store.parent / "more.parquet")
    with pytest.raises(ArtifactError, match="has 23 rows, but its manifest has 24"):
        open_dump(store, store.parent / "more.parquet")
    write_table("components", components(3), components_path(store))
    with pytest.raises(
        ArtifactError, match="26 coordinates an image, but its table of components lists 13"
    ):
        open_dump(store, store.parent / "images.parquet")


def test_features_are_read_by_position(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")
    store = tmp_path / "world.zarr"
    for shard in (0, 1):
        rows = values[shard * SHARD : (shard + 1) * SHARD]
        write_shard(store, "features", shard, {"image_embeddings": rows}, shard_size=SHARD)
    write_layout(store, "features", {"n": 12, "e": 5}, shard_size=SHARD)
    write_table("manifest", manifest(12), tmp_path / "images.parquet")
    features = open_features(store, tmp_path / "images.parquet")
    np.testing.assert_array_equal(features.embeddings([11, 3]), values[[11, 3]])
