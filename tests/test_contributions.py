"""Dumps of a small model: exact, whole shards, refused above the tolerance, checked as a whole."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline_lib import contributions as dumping
from pipeline_lib.artifacts import read_provenance, write_table
from pipeline_lib.config import Contributions, FolderData, SplitShares
from pipeline_lib.contributions import dump_shard, gather_dump
from pipeline_lib.decomposition import decompose
from pipeline_lib.dumps import open_dump, open_features
from pipeline_lib.encoder import model_factors
from pipeline_lib.errors import ArtifactError, DataError, ModelError, ToleranceError
from pipeline_lib.factors import Factors
from pipeline_lib.image_features import embed_shard, gather_features, read_embeddings
from pipeline_lib.listing import list_images
from pipeline_lib.manifest import make_manifest
from pipeline_lib.models import VisionModel, load_model
from pipeline_lib.store import shard_object, write_shard

SETTINGS = Contributions(datasets=["photos"], shard_size=4, batch_size=3)


@pytest.fixture(scope="module")
def model() -> VisionModel:
    torch.manual_seed(0)
    return load_model(
        "timm:vit_tiny_patch16_224", pretrained=False, img_size=32, embed_dim=24, depth=2,
        num_heads=3, num_classes=5,
    )  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine photographs; the sixth has left the data set."""
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(9):
        noise = rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{number}.png")
    dataset = FolderData(source="folder", path=str(root))
    manifest, _ = make_manifest(
        list_images(dataset, root), root, shard_size=4, shares=SplitShares(), seed=0
    )
    manifest["active"] = manifest["row"] != 5
    write_table("manifest", manifest, tmp_path / "images.parquet")
    return root


def rows_of(photos: Path, shard: int) -> pd.DataFrame:
    manifest = pd.read_parquet(photos.parent / "images.parquet")
    rows = manifest[manifest["shard"] == shard]
    return rows[["row", "path", "active", "sha256"]].reset_index(drop=True)


def factors_of(model: VisionModel, settings: Contributions = SETTINGS) -> Factors:
    return model_factors(model, settings)


def dump_all(
    model: VisionModel, photos: Path, settings: Contributions = SETTINGS
) -> tuple[Path, list[Path]]:
    store, records = photos.parent / "photos.zarr", []
    for shard in range(-(-9 // settings.shard_size)):
        components, facts = dump_shard(
            model, rows_of(photos, shard), photos, store, settings, factors_of(model, settings)
        )
        records.append(photos.parent / "records" / f"{shard}.parquet")
        write_table("components", components, records[-1], facts)
    return store, records


def test_a_dump_holds_what_decompose_gives(model: VisionModel, photos: Path) -> None:
    store, records = dump_all(model, photos)
    facts = gather_dump(store, records, photos.parent / "images.parquet", 1e-5, factors_of(model))
    dump = open_dump(store, photos.parent / "images.parquet")
    assert dump.n == 8 and facts["sizes"]["n"] == 9
    images = [Image.open(photos / path).convert("RGB") for path in dump.manifest["path"]]
    batch = torch.stack([model.preprocess(image) for image in images])
    parts = decompose(model, batch)
    index = np.arange(dump.n)
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(dump.contributions(index), parts.values.numpy(), **close)
    np.testing.assert_allclose(dump.representation(index), parts.representation.numpy(), **close)
    with torch.no_grad():
        logits = model.module(batch).numpy()
    np.testing.assert_allclose(dump.logits(index), logits, **close)
    assert list(dump.components["id"]) == list(parts.components["id"])
    assert dump.attributes["weight_hash"] == model.weight_hash
    assert dump.attributes["per"] == "head" and dump.error(index).max() < 1e-5


def test_the_size_of_batches_does_not_matter(model: VisionModel, photos: Path) -> None:
    rows = rows_of(photos, 0)
    results = []
    for size in (1, 4):
        store = photos.parent / f"{size}.zarr"
        settings = SETTINGS.model_copy(update={"batch_size": size})
        components, facts = dump_shard(
            model, rows, photos, store, settings, factors_of(model, settings)
        )
        write_table("components", components, photos.parent / f"{size}.parquet", facts)
        gather_dump(
            store,
            [photos.parent / f"{size}.parquet"],
            photos_of(photos, 4),
            1e-5,
            factors_of(model),
        )
        results.append(open_dump(store, photos_of(photos, 4)).contributions(np.arange(4)))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-5)


def photos_of(photos: Path, count: int) -> Path:
    """Manifest of the first images only."""
    manifest = pd.read_parquet(photos.parent / "images.parquet")[:count]
    write_table("manifest", manifest, photos.parent / f"first{count}.parquet")
    return photos.parent / f"first{count}.parquet"


def test_running_a_shard_again_gives_the_same_bytes(model: VisionModel, photos: Path) -> None:
    paths = []
    for name in ("a", "b"):
        store = photos.parent / f"{name}.zarr"
        dump_shard(model, rows_of(photos, 1), photos, store, SETTINGS, factors_of(model))
        paths.append(Path(shard_object(store, "contributions", "coordinates", 1)))
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_shard_whose_images_all_left_is_laid_out_too(model: VisionModel, photos: Path) -> None:
    store = photos.parent / "photos.zarr"
    records = []
    for shard in range(3):
        rows = rows_of(photos, shard)
        rows["active"] &= shard != 1
        components, facts = dump_shard(model, rows, photos, store, SETTINGS, factors_of(model))
        records.append(photos.parent / f"{shard}.parquet")
        write_table("components", components, records[-1], facts)
    manifest = pd.read_parquet(photos.parent / "images.parquet")
    manifest["active"] &= manifest["shard"] != 1
    write_table("manifest", manifest, photos.parent / "left.parquet")
    gather_dump(store, records, photos.parent / "left.parquet", 1e-5, factors_of(model))
    assert open_dump(store, photos.parent / "left.parquet").n == 5


@pytest.mark.parametrize("error", [2e-5, float("nan")])
def test_sums_beyond_the_tolerance_write_nothing(
    model: VisionModel, photos: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    def inexact(*args: Any, **options: Any) -> Any:
        parts = decompose(*args, **options)
        errors = parts.error.clone()
        errors[1] = error
        return dataclasses.replace(parts, error=errors)

    monkeypatch.setattr("pipeline_lib.decomposition.decompose", inexact)
    store = photos.parent / "photos.zarr"
    with pytest.raises(ToleranceError) as failure:
        dump_shard(model, rows_of(photos, 0), photos, store, SETTINGS, factors_of(model))
    message = str(failure.value)
    assert "contributions of 1 of 3 images do not sum" in message
    assert (
        "contributions.tolerance (1e-05, relative)" in message and f"1.png: {error:.3g}" in message
    )
    assert not store.exists()


def test_an_image_that_changed_since_the_manifest_stops_the_dump(
    model: VisionModel, photos: Path
) -> None:
    Image.new("RGB", (32, 32)).save(photos / "2.png")
    with pytest.raises(DataError, match=r"2\.png is not the file that was listed"):
        dump_shard(
            model, rows_of(photos, 0), photos, photos.parent / "x.zarr", SETTINGS, factors_of(model)
        )
    assert not (photos.parent / "x.zarr").exists()


def test_rows_that_are_no_whole_shard_are_refused(model: VisionModel, photos: Path) -> None:
    for rows in (rows_of(photos, 0)[1:], pd.concat([rows_of(photos, 0), rows_of(photos, 1)])):
        with pytest.raises(ArtifactError, match="not one whole shard of 4"):
            dump_shard(
                model,
                rows.reset_index(),
                photos,
                photos.parent / "x.zarr",
                SETTINGS,
                factors_of(model),
            )


def test_shards_made_by_different_weights_are_no_dump(model: VisionModel, photos: Path) -> None:
    store, records = dump_all(model, photos)
    facts = read_provenance(records[1]) | {"weight_hash": "another"}
    write_table("components", pd.read_parquet(records[1]), records[1], facts)
    with pytest.raises(ArtifactError, match=r"1\.parquet was made otherwise than .*0\.parquet"):
        gather_dump(store, records, photos.parent / "images.parquet", 1e-5, factors_of(model))
    assert not (store / "zarr.json").exists()


def test_damage_between_dumping_and_gathering_is_found(model: VisionModel, photos: Path) -> None:
    store, records = dump_all(model, photos)
    Path(shard_object(store, "contributions", "coordinates", 2)).unlink()
    with pytest.raises(ArtifactError, match="coordinates/c/2/0 lacks 1 of the"):
        gather_dump(store, records, photos.parent / "images.parquet", 1e-5, factors_of(model))


def test_stored_numbers_are_summed_again(
    model: VisionModel, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store whose contributions are those of other images is refused."""
    original = dumping.write_shard

    def shuffled(store: Path, kind: str, shard: int, arrays: dict, **layout: Any) -> None:
        turned = arrays | {"coordinates": arrays["coordinates"][::-1].copy()}
        original(store, kind, shard, turned, **layout)

    store, records = dump_all(model, photos)
    monkeypatch.setattr(dumping, "write_shard", shuffled)
    dump_shard(model, rows_of(photos, 0), photos, store, SETTINGS, factors_of(model))
    with pytest.raises(ToleranceError, match="in float32 on disk"):
        gather_dump(store, records, photos.parent / "images.parquet", 1e-5, factors_of(model))


def test_half_precision_is_held_to_the_error_before_rounding(
    model: VisionModel, photos: Path
) -> None:
    settings = SETTINGS.model_copy(update={"dtype": "float16"})
    store, records = dump_all(model, photos, settings)
    facts = gather_dump(
        store, records, photos.parent / "images.parquet", 1e-5, factors_of(model, settings)
    )
    assert 1e-5 < facts["exactness"]["worst_error"] < 1e-2
    assert 1e-5 < facts["exactness"]["worst_rounding"] < 2.0**-11


def test_blocks_and_spread_biases(model: VisionModel, photos: Path) -> None:
    settings = SETTINGS.model_copy(update={"per": "layer", "bias": "even"})
    store, records = dump_all(model, photos, settings)
    gather_dump(store, records, photos.parent / "images.parquet", 1e-5, factors_of(model, settings))
    components = open_dump(store, photos.parent / "images.parquet").components
    assert "head" not in set(components["kind"]) and "bias" not in set(components["kind"])


# Image embeddings


class Reference:
    """A stand-in for a CLIP: the embedding is the mean colour, to unit length."""

    id, weight_hash, input_size = "stand-in", "0", (32, 32)
    device = torch.device("cpu")

    def to(self, device: torch.device) -> Reference:
        return self

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(images.mean(dim=(2, 3)) + 1.0, dim=-1)


def test_embeddings_stand_in_the_rows_of_their_images(photos: Path) -> None:
    store, records = photos.parent / "photos.zarr", {}
    for shard in range(3):
        facts = embed_shard(Reference(), rows_of(photos, shard), photos, store, SETTINGS)
        records[Path(f"{shard}.json")] = json.loads(json.dumps(facts))
    gather_features(store, records, photos.parent / "images.parquet")
    features = open_features(store, photos.parent / "images.parquet")
    assert features.n == 8
    for position, path in enumerate(features.manifest["path"]):
        colour = np.asarray(Image.open(photos / path)).mean(axis=(0, 1)) + 1.0
        expected = colour / np.linalg.norm(colour)
        np.testing.assert_allclose(features.embeddings([position])[0], expected, rtol=1e-5)
    record = photos.parent / "1.json"
    record.write_text(json.dumps(records[Path("1.json")]))
    path = Path(shard_object(store, "features", "image_embeddings", 1))
    assert records[Path("1.json")]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    alone = read_embeddings(path, record, rows_of(photos, 1))  # of rows 4 to 7, without the sixth
    np.testing.assert_array_equal(alone.vectors, features.embeddings([4, 5, 6]))
    assert alone.facts == {"model": "stand-in", "weight_hash": "0", "width": 3}
    with pytest.raises(ArtifactError, match="lacks embeddings of some of its 4 images"):
        read_embeddings(path, record, rows_of(photos, 1).assign(active=True))
    longer = np.full((4, 3), 3**-0.5, dtype="float32") * np.array([[1], [1], [1.01], [1]], "f4")
    longer_store = photos.parent / "longer.zarr"
    write_shard(longer_store, "features", 1, {"image_embeddings": longer}, shard_size=4)
    other = Path(shard_object(longer_store, "features", "image_embeddings", 1))
    with pytest.raises(ArtifactError, match="image in row 6 is no unit vector; delete it"):
        read_embeddings(other, record, rows_of(photos, 1))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ArtifactError, match="missing or damaged.*delete it"):
        read_embeddings(path, record, rows_of(photos, 1))
    records[Path("2.json")]["weight_hash"] = "1"
    with pytest.raises(ArtifactError, match=r"2\.json was made otherwise than 0\.json"):
        gather_features(store, records, photos.parent / "images.parquet")


def test_a_reference_without_a_text_tower_is_refused(model: VisionModel, photos: Path) -> None:
    with pytest.raises(ModelError, match="is no CLIP model"):
        embed_shard(model, rows_of(photos, 0), photos, photos.parent / "x.zarr", SETTINGS)
