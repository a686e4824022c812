"""Factored contributions: spans from the weights alone, equal to the full store, and smaller."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline_lib.artifacts import read_provenance, read_table, write_table
from pipeline_lib.config import Contributions, FolderData, SplitShares
from pipeline_lib.contributions import dump_shard, gather_dump
from pipeline_lib.decomposition import decompose, plan_for
from pipeline_lib.decomposition.spans import component_spans
from pipeline_lib.dumps import Dump, components_path, open_dump
from pipeline_lib.encoder import model_factors
from pipeline_lib.errors import ArtifactError, DataError, ToleranceError
from pipeline_lib.factors import Factors, factorise, load_factors, save_factors
from pipeline_lib.image_features import ShardEmbeddings
from pipeline_lib.listing import list_images
from pipeline_lib.manifest import make_manifest
from pipeline_lib.maps import Maps, with_heldout
from pipeline_lib.models import VisionModel, load_model
from pipeline_lib.moment_dumps import gather_moments, sum_shard
from pipeline_lib.provenance import data_fingerprint, missing_fields
from pipeline_lib.streamed import StreamedMoments, load_moments, save_moments

VIT = {"img_size": 32, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
SWIN = {
    "img_size": 32, "patch_size": 2, "embed_dim": 12, "depths": (1, 2), "num_heads": (2, 3),
    "window_size": 4,
}  # fmt: skip


def shaken(name: str, num_classes: int = 5, **kwargs: object) -> VisionModel:
    """A small model in which no weight is zero or one."""
    torch.manual_seed(0)
    model = load_model(f"timm:{name}", pretrained=False, num_classes=num_classes, **kwargs)
    with torch.no_grad():
        for weight in model.module.parameters():
            weight += 0.05 * torch.randn_like(weight)
    return model


@pytest.fixture(scope="module")
def vit() -> VisionModel:
    return shaken("vit_tiny_patch16_224", **VIT)


@pytest.fixture(scope="module")
def swin() -> VisionModel:
    return shaken("swin_tiny_patch4_window7_224", **SWIN)


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize(("per", "bias"), [("head", "separate"), ("head", "even"),
                                           ("layer", "separate")])  # fmt: skip
def test_contributions_lie_in_the_span_that_the_weights_give(
    name: str, per: str, bias: str, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    images = torch.randn(4, 3, *model.input_size)
    values = decompose(model, images, per=per, bias=bias).values.double()
    spans = component_spans(plan_for(model, images), per=per, bias=bias)
    assert len(spans) == values.shape[1]
    known = [c for c, span in enumerate(spans) if span is not None]
    assert len(known) >= 1
    for component in known:
        span, part = spans[component], values[:, component]
        inside = torch.linalg.lstsq(span.T, part.T).solution
        left = torch.linalg.norm(part.T - span.T @ inside)
        assert left < 1e-5 * torch.linalg.norm(part)


def test_a_head_of_a_plain_transformer_has_as_many_directions_as_it_is_wide(
    vit: VisionModel,
) -> None:
    images = torch.zeros(1, 3, *vit.input_size)
    plan = plan_for(vit, images)
    kinds = plan.components["kind"]
    lengths = [None if s is None else len(s) for s in component_spans(plan)]
    assert {n for n, kind in zip(lengths, kinds, strict=True) if kind == "head"} == {16}
    assert all(n is None for n, kind in zip(lengths, kinds, strict=True) if kind == "mlp")


def test_several_token_groups_need_more_directions_and_are_stored_whole(swin: VisionModel) -> None:
    """Before a patch merging every head is read four ways."""
    plan = plan_for(swin, torch.zeros(1, 3, *swin.input_size))
    factors = model_factors(swin, Contributions(datasets=["x"], shard_size=500))
    rank = dict(zip(plan.components["id"], factors.ranks, strict=True))
    first = [r for name, r in rank.items() if name.startswith("layers.0") and "/head" in name]
    last = [r for name, r in rank.items() if name.startswith("layers.1") and "/head" in name]
    assert first == [plan.width] * 2 and last == [8] * 6


def test_small_shards_are_stored_whole() -> None:
    """One basis of r rows pays when r d + n r < n d: here 2·6 + 2n < 6n, that is n > 3."""
    span = np.random.default_rng(0).normal(size=(2, 6))
    assert factorise([span, None], 6, 3).ranks == (6, 6)
    assert factorise([span, None], 6, 4).ranks == (2, 6)


def test_bases_are_orthonormal_and_drop_directions_that_repeat() -> None:
    rng = np.random.default_rng(0)
    span = rng.normal(size=(3, 9))
    factors = factorise([np.vstack([span, span[:1] - span[1:2]]), np.zeros((2, 9))], 9, 500)
    assert factors.ranks == (3, 1)
    first = factors.vectors[0]
    np.testing.assert_allclose(first @ first.T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(span @ first.T @ first, span, atol=1e-6)


def test_coordinates_of_some_components_are_found_and_decoded_in_their_order() -> None:
    rng = np.random.default_rng(0)
    factors = factorise([None, rng.normal(size=(2, 5)), None], 5, 500)
    x = rng.normal(size=(4, factors.columns)).astype("float32")
    everything = factors.decode(x)
    np.testing.assert_array_equal(everything[:, 0], x[:, :5])
    np.testing.assert_allclose(everything[:, 1], x[:, 5:7] @ factors.bases, rtol=1e-6)
    picked = factors.decode(x[:, factors.columns_of([2, 1])], [2, 1])
    np.testing.assert_array_equal(picked, everything[:, [2, 1]])


def test_bases_are_saved_and_read_back(tmp_path: Path) -> None:
    factors = factorise([np.eye(2, 7), None], 7, 500)
    save_factors(factors, tmp_path / "bases.safetensors", {"model": "m"})
    read = load_factors(tmp_path / "bases.safetensors")
    assert read.ranks == factors.ranks and read.digest == factors.digest
    (tmp_path / "bases.safetensors").write_bytes(b"no")
    with pytest.raises(ArtifactError, match="delete it and run snakemake again"):
        load_factors(tmp_path / "bases.safetensors")


# Dumps


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        noise = rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / f"{number:02d}.png")
    dataset = FolderData(source="folder", path=str(root))
    manifest, _ = make_manifest(
        list_images(dataset, root), root, shard_size=60, shares=SplitShares(), seed=0
    )
    write_table("manifest", manifest, tmp_path / "images.parquet")
    return root


def dumped(
    model: VisionModel,
    photos: Path,
    name: str,
    texts: torch.Tensor | None = None,
    maps: Maps | None = None,
    **change: object,
) -> tuple[Dump, dict]:
    """A dump of twenty photographs in one shard of at most sixty."""
    settings = Contributions(datasets=["x"], shard_size=60, batch_size=8, **change)
    store, manifest = photos.parent / f"{name}.zarr", photos.parent / "images.parquet"
    factors = model_factors(model, settings, texts, maps)
    rows = read_table("manifest", manifest)[["row", "path", "active", "sha256"]]
    components, facts = dump_shard(model, rows, photos, store, settings, factors)
    record = photos.parent / f"{name}.parquet"
    write_table("components", components, record, facts)
    facts = gather_dump(store, [record], manifest, settings.tolerance, factors)
    return open_dump(store, manifest, projected=True), facts


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_a_factored_dump_equals_a_full_one_within_float_error(
    name: str, photos: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    factored, facts = dumped(model, photos, "factored")
    full, _ = dumped(model, photos, "full", level="full")
    index = np.arange(20)
    expected, found = full.contributions(index), factored.contributions(index)
    assert facts["exactness"]["worst_rounding"] < 2e-6
    assert np.linalg.norm(found - expected) < 2e-6 * np.linalg.norm(expected)
    np.testing.assert_array_equal(factored.representation(index), full.representation(index))
    assert full.rounding(index).max() == 0
    assert factored.factors.columns < full.factors.columns
    table = pd.read_parquet(components_path(photos.parent / "factored.zarr"))
    assert tuple(table["rank"]) == factored.factors.ranks


@pytest.mark.parametrize("mapped", [False, True])
def test_a_projected_dump_keeps_what_is_asked_of_it(
    vit: VisionModel, photos: Path, mapped: bool
) -> None:
    """Logits of the model's classifier, and texts through maps of its components."""
    full, _ = dumped(vit, photos, "full", level="full")
    index, count = np.arange(20), len(full.components)
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(2, 5, generator=generator) if mapped else None
    maps = Maps("ridge", torch.randn(count, full.width, 5, generator=generator), torch.zeros(5))
    part, facts = dumped(vit, photos, "part", level="projected", texts=texts, maps=maps)
    assert part.factors.columns < full.factors.columns and not part.is_whole
    assert facts["exactness"]["worst_rounding"] == 0  # float32 loses nothing of the coordinates
    with pytest.raises(ArtifactError, match="along some directions only"):
        open_dump(photos.parent / "part.zarr", photos.parent / "images.parquet")
    values, narrow = full.contributions(index), part.contributions(index)
    weight = vit.classifier.weight.detach().numpy()
    np.testing.assert_allclose(narrow @ weight.T, values @ weight.T, atol=1e-5)
    if texts is not None:
        read = maps.directions(texts, count).numpy()
        np.testing.assert_allclose(
            np.einsum("ncd,cdk->nck", narrow, read), np.einsum("ncd,cdk->nck", values, read),
            atol=1e-4,
        )  # fmt: skip


def test_moments_of_shards_are_those_of_the_dump(vit: VisionModel, photos: Path) -> None:
    """Two shards, one of them without images; images of split test apart from all others."""
    folder = photos.parent
    dump, _ = dumped(vit, photos, "whole")
    manifest = read_table("manifest", folder / "images.parquet")
    rows = manifest[["row", "path", "active", "sha256", "split"]]
    settings = Contributions(datasets=["x"], shard_size=60, batch_size=8, level="moments")
    shards, records = [], []
    for number, part in enumerate((rows, rows.assign(active=False))):
        groups, components, facts = sum_shard(vit, part, photos, settings, dump.factors)
        shards.append(folder / f"{number}.safetensors")
        records.append(folder / f"{number}.parquet")
        save_moments(groups, shards[-1])
        write_table("components", components, records[-1], facts)
    more = (folder / "images.parquet", settings.tolerance, dump.factors)
    out = folder / "all.safetensors", folder / "all.components.parquet"
    facts = gather_moments(shards, records, *more, *out)
    assert facts["sizes"] == {"n": 20, "r": dump.factors.columns}
    assert 0 < facts["exactness"]["worst_error"] < settings.tolerance
    assert missing_fields(facts) == ["stage", "seed"]
    is_test = (dump.manifest["split"] == "test").to_numpy()
    for name, chosen in (("test", is_test), ("fit", ~is_test)):
        found = load_moments(out[0])[name]
        expected = StreamedMoments.of([dump.coordinates(np.flatnonzero(chosen))])
        assert found.n == chosen.sum() > 0
        np.testing.assert_allclose(found.mean, expected.mean, atol=1e-6)
        np.testing.assert_allclose(found.squares, expected.squares, atol=1e-5)
    save_moments({"fit": expected}, shards[0])
    with pytest.raises(ArtifactError, match="does not hold the moments"):
        gather_moments(shards, records, *more, *out)
    with pytest.raises(ArtifactError, match="other bases"):
        gather_moments(shards, records, *more[:2], Factors.whole(3, 4), *out)


def test_moments_for_a_fit_of_maps_count_the_targets_in(vit: VisionModel, photos: Path) -> None:
    """Held-out images are apart, test images have no targets, and other references are refused."""
    folder = photos.parent
    dump, _ = dumped(vit, photos, "whole")
    manifest = read_table("manifest", folder / "images.parquet")
    rows = with_heldout(manifest, 0.4, seed=0)[["row", "path", "active", "sha256", "split"]]
    settings = Contributions(datasets=["x"], shard_size=60, batch_size=8, level="moments")
    vectors = np.random.default_rng(0).normal(size=(20, 5)).astype("float32")
    vectors[rows["split"] == "test"] = np.nan
    shards, records = [], []
    for number, part in enumerate((rows, rows.assign(active=False))):
        facts = {"model": "clip", "weight_hash": "a", "width": 5}
        targets = ShardEmbeddings(vectors[part["active"]], facts)
        groups, components, facts = sum_shard(
            vit, part, photos, settings, dump.factors, targets=targets
        )
        shards.append(folder / f"{number}.safetensors")
        records.append(folder / f"{number}.parquet")
        save_moments(groups, shards[-1])
        write_table("components", components, records[-1], facts)
    out = folder / "all.safetensors", folder / "all.components.parquet"
    more = (folder / "images.parquet", settings.tolerance, dump.factors, *out)
    facts = gather_moments(shards, records, *more)
    assert facts["sizes"] == {"n": 20, "r": dump.factors.columns, "e": 5}
    found = load_moments(out[0])
    kinds = rows["split"].where(rows["split"].isin(["test", "heldout"]), "fit").to_numpy()
    assert set(found) == set(kinds)
    values = np.hstack([dump.coordinates(np.arange(20)), vectors])
    for name, group in found.items():
        chosen = values[kinds == name]
        expected = StreamedMoments.of([chosen[:, :-5] if name == "test" else chosen])
        assert group.n == expected.n
        np.testing.assert_allclose(group.mean, expected.mean, atol=1e-6)
        np.testing.assert_allclose(group.squares, expected.squares, atol=1e-5)
    write_table(
        "components",
        components,
        records[1],
        read_provenance(records[1])
        | {"targets": {"model": "clip", "weight_hash": "b", "width": 5}},
    )
    with pytest.raises(ArtifactError, match="made otherwise"):
        gather_moments(shards, records, *more)


def test_nothing_to_project_on_is_an_error(photos: Path) -> None:
    model = shaken("vit_tiny_patch16_224", num_classes=0, **VIT)
    with pytest.raises(DataError, match="no directions to project on"):
        model_factors(model, Contributions(datasets=["x"], level="projected"))


def test_the_manifest_of_a_dump_says_what_made_it(vit: VisionModel, photos: Path) -> None:
    dump, facts = dumped(vit, photos, "photos")
    assert missing_fields(facts) == ["stage", "seed"]  # known to the job alone
    assert facts["weight_hash"] == vit.weight_hash and facts["data"]["images"] == dump.n == 20
    assert facts["device"] == [f"cpu, torch {torch.__version__}"]
    assert any(step.startswith("Normalize") for step in facts["preprocessing"])
    table = pd.read_parquet(photos.parent / "images.parquet")
    table.loc[3, "sha256"] = "another"
    assert data_fingerprint(table)["sha256"] != facts["data"]["sha256"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_error_of_the_dtype_is_recorded_for_every_image(
    vit: VisionModel, photos: Path, dtype: str
) -> None:
    exact, _ = dumped(vit, photos, "exact", level="full")
    half, _ = dumped(vit, photos, dtype, dtype=dtype)
    index = np.arange(20)
    expected = exact.contributions(index).reshape(20, -1)
    found = half.contributions(index).reshape(20, -1)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    np.testing.assert_allclose(half.rounding(index), error, rtol=1e-2)
    assert 0.1 * half.precision < error.max() < half.precision


def test_numbers_too_large_for_the_dtype_stop_the_dump(photos: Path) -> None:
    model = shaken("vit_tiny_patch16_224", **VIT)
    with torch.no_grad():
        model.module.norm.weight *= 1e6
        model.module.norm.bias *= 1e6
    with pytest.raises(ToleranceError, match="stored as float16 lose"):
        dumped(model, photos, "half", dtype="float16")
    dumped(model, photos, "brain", dtype="bfloat16")


def test_bases_of_another_model_are_refused(vit: VisionModel, photos: Path) -> None:
    settings = Contributions(datasets=["x"], shard_size=60)
    rows = read_table("manifest", photos.parent / "images.parquet")
    rows = rows[["row", "path", "active", "sha256"]]
    store = photos.parent / "x.zarr"
    with pytest.raises(ArtifactError, match="the bases are of 3 components of width 48"):
        dump_shard(vit, rows, photos, store, settings, Factors.whole(3, 48))
    other = shaken("vit_tiny_patch16_224", **VIT)
    with torch.no_grad():
        for weight in other.module.parameters():
            weight += 0.05 * torch.randn_like(weight)
    with pytest.raises(ToleranceError, match="lose"):
        dump_shard(vit, rows, photos, store, settings, model_factors(other, settings))


def test_a_vit_b_takes_a_fifth_of_the_room() -> None:
    """Shapes alone: ViT-B/16 per head, a shard of 500 images, bases shared by ten shards."""
    heads, blocks, width, n = 144, 12, 768, 5000
    rng = np.random.default_rng(0)
    spans = [None] * (blocks + 2) + [rng.normal(size=(64, width)) for _ in range(2)]
    factors = factorise(spans, width, 500)
    coordinates = (blocks + 2) * width + heads * factors.ranks[-1]
    stored = n * coordinates + heads * factors.ranks[-1] * width
    assert stored <= n * (heads + blocks + 2) * width / 5
