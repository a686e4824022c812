"""Levels of contributions: what each keeps gives the results that all numbers give."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import torch
from running import (
    SMALL,
    TINY,
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
from pipeline_lib.config import MapMethod, load_config
from pipeline_lib.coordinates import Source, encode
from pipeline_lib.dumps import Dump, open_dump, open_features
from pipeline_lib.errors import ConfigError
from pipeline_lib.factors import load_factors
from pipeline_lib.features import concept_embeddings
from pipeline_lib.map_problem import Problem
from pipeline_lib.map_ridge import ridge
from pipeline_lib.maps import explained_share, load_maps, split_heldout, without_test
from pipeline_lib.scores import moments as image_moments
from pipeline_lib.scores import score_components
from pipeline_lib.streamed import load_moments, stored_bases

#: What numbers in other units than images, seconds and text may differ by between levels.
CLOSE = {"rtol": 1e-3, "atol": 2e-4}


def at_level(level: str, finished: Path) -> dict[str, Any]:
    """The tiny run at a level, with the maps of the finished one and nothing that it refuses."""
    content = changed(TINY, "contributions.level", level)
    content["contributions"]["datasets"] = ["world"]
    content["maps"] |= {"given": str(finished / "results/test/maps"), "baselines": []}
    if level == "moments":
        content["contributions"]["shard_size"] = 40
        content["applications"] = {}
    else:
        content["applications"] = {"ablation": content["applications"]["ablation"]}
        del content["scores"], content["models"]["deit"]  # the one has no class of the images
    return content


def run_at(level: str, finished: Path, folder: Path) -> Path:
    """Results of a copy of the finished run, brought to a level."""
    return run_of(at_level(level, finished), finished, folder)


def run_of(content: dict[str, Any], finished: Path, folder: Path) -> Path:
    """Results of a copy of the finished run, brought to another configuration."""
    shutil.copytree(finished, folder, copy_function=shutil.copy2, dirs_exist_ok=True)
    shutil.rmtree(folder / "results/test/scores")
    shutil.rmtree(folder / "results/test/applications")
    write_config(folder, content)
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert not plan(folder)
    return folder / "results" / "test"


def same(kind: str, one: Path, other: Path, **options: Any) -> pd.DataFrame:
    """The table of the first run, after a comparison of all that both know."""
    found, expected = (read_table(kind, folder) for folder in (one, other))
    known = [name for name in found if found[name].notna().any()]
    pd.testing.assert_frame_equal(found[known], expected[known], **CLOSE, **options)
    return found


@pytest.fixture(scope="module")
def moments(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run that keeps moments of two shards."""
    return run_at("moments", finished, tmp_path_factory.mktemp("moments"))


@pytest.mark.slow
def test_scores_labels_and_roles_from_moments_are_those_of_the_dump(
    moments: Path, finished: Path
) -> None:
    full = finished / "results" / "test"
    for model in TINY["models"]:
        for kind in ("scores", "labels", "roles", "hierarchy"):
            name = f"scores/{model}/world.{kind}.parquet"
            table = same(kind, moments / name, full / name)
            assert len(table)
        scores = read_table("scores", moments / f"scores/{model}/world.scores.parquet")
        assert scores["low"].isna().all() and scores["p_value"].notna().all()


@pytest.mark.slow
def test_another_method_labels_from_moments_as_from_the_dump(
    moments: Path, finished: Path, tmp_path: Path
) -> None:
    name = "scores/clip-small/world.{}.parquet"
    tables = {}
    for level, source in (("moments", moments.parents[1]), ("factored", finished)):
        folder = Path(shutil.copytree(source, tmp_path / level, copy_function=shutil.copy2))
        content = at_level("moments", finished) if level == "moments" else TINY
        write_config(folder, changed(content, "scores.method", "omp"))
        done = snakemake(folder, f"results/test/{name.format('labels')}")
        assert done.returncode == 0, done.stderr[-3000:]
        tables[level] = folder / "results" / "test"
    for kind in ("labels", "hierarchy"):
        paths = [folder / name.format(kind) for folder in tables.values()]
        found = same(kind, *paths)
        default = read_table(kind, finished / "results" / "test" / name.format(kind))
        assert found["text"].tolist() != default["text"].tolist()


def test_moments_take_the_same_room_however_many_images(moments: Path) -> None:
    for model in TINY["models"]:
        base = moments / "contributions" / model
        shards = sorted(base.glob("world.moments/*.safetensors"))
        assert [path.stem for path in shards] == ["0", "1"]
        files = [*shards, base / "world.moments.safetensors"]
        assert len({path.stat().st_size for path in files}) == 1
        groups = load_moments(base / "world.moments.safetensors")
        manifest = read_table("manifest", moments / "manifest/world/images.parquet")
        assert groups["test"].n == (manifest["split"] == "test").sum()
        assert groups["fit"].n == (manifest["split"] != "test").sum()
    assert (moments / "report" / "index.html").stat().st_size > 10_000


def test_moments_that_were_lost_are_summed_again(moments: Path) -> None:
    folder = moments.parents[1]
    victim = folder / "results/test/contributions/deit/world.moments/1.safetensors"
    content, facts = victim.read_bytes(), victim.stat()
    victim.unlink()
    try:
        jobs = plan(folder)
        assert [names for rule, names in jobs if rule == "moments"] == ["deit world 1"]
        assert {"gather_moments", "scores_of_moments"} <= rules_of(jobs)
    finally:
        victim.write_bytes(content)
        os.utime(victim, ns=(facts.st_atime_ns, facts.st_mtime_ns))


@pytest.fixture(scope="module")
def fitted(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a run whose map of deit is fitted from moments of two shards."""
    folder = tmp_path_factory.mktemp("fitted")
    content = at_level("moments", finished)
    content["maps"] = {"dataset": "world", "method": "ridge"}
    return run_of(content, finished, folder)


@pytest.fixture
def images(fitted: Path, finished: Path) -> Problem:
    """The images of that fit in the finished run's dump, in the bases of the moments."""
    full = finished / "results" / "test"
    manifest = full / "manifest/world/images.parquet"
    dump = open_dump(full / "contributions/deit/world.zarr", manifest)
    positions = without_test(dump.manifest["split"])
    heldout = split_heldout(dump.manifest["image_id"].iloc[positions].tolist(), 0.2, seed=0)
    bases, _ = stored_bases(load_factors(fitted / "contributions/deit.bases.safetensors"))
    encoded = encode(Source(dump.n, dump.contributions).at(positions), bases=bases)
    features = open_features(full / "features/world.zarr", manifest)
    targets = torch.from_numpy(features.embeddings(positions))
    return Problem(encoded, targets, np.flatnonzero(~heldout), np.flatnonzero(heldout))


@pytest.mark.slow
def test_a_map_fitted_from_moments_is_the_ridge_of_the_images(
    fitted: Path, images: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = load_maps(fitted / "maps/deit.safetensors")
    assert maps.method == "ridge" and maps.weights is not None
    assert maps.facts["criterion"].startswith("explained")
    monkeypatch.setattr("pipeline_lib.map_ridge.STRENGTHS", (maps.facts["strength"],))
    expected = ridge(images)
    size = float(maps.weights.abs().max())
    torch.testing.assert_close(maps.weights, expected.weights(images), rtol=0, atol=1e-3 * size)
    metrics = read_table("map_metrics", fitted / "maps/deit.metrics.parquet").set_index("split")
    assert metrics[["cosine", "recall_at_1", "recall_at_5"]].isna().all(axis=None)
    for split, index in (("train", images.fit), ("heldout", images.heldout)):
        mapped = images.mapped(index, expected.blocks, expected.bias)
        share = explained_share(mapped, images.targets[index])
        assert metrics.loc[split, "explained"] == pytest.approx(share, abs=1e-3)
        assert metrics.loc[split, "n"] == len(index)


@pytest.mark.slow
def test_scores_by_a_map_fitted_from_moments_are_those_of_all_its_images(
    fitted: Path, images: Problem
) -> None:
    """Those held out of the fit count among the scored ones."""
    found = image_moments(images.encoded, load_maps(fitted / "maps/deit.safetensors"))
    texts = read_table("text_features", fitted / "features/texts/reference.parquet")
    expected = score_components(found, concept_embeddings(texts))
    scores = read_table("scores", fitted / "scores/deit/world.scores.parquet")
    columns = list(expected)
    pd.testing.assert_frame_equal(scores[columns], expected, **CLOSE)
    assert (fitted / "report" / "index.html").stat().st_size > 10_000


@pytest.mark.slow
def test_moments_without_a_fit_are_the_same_beside_one(fitted: Path, moments: Path) -> None:
    groups = load_moments(fitted / "contributions/deit/world.moments.safetensors")
    assert set(groups) == {"fit", "heldout", "test"}
    for name in ("world.moments.safetensors", "world.moments/0.safetensors"):
        one, other = (run / "contributions/clip-small" / name for run in (fitted, moments))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_images_that_join_repeat_their_shard_and_the_fit(tmp_path: Path) -> None:
    folder, target = own_run(tmp_path, 30), "results/own/maps/deit.safetensors"
    content = changed(SMALL, "contributions.shard_size", 12)
    content["contributions"]["level"] = "moments"
    content |= {name: TINY[name] for name in ("models", "reference")}
    content["maps"] = {"dataset": "photos", "method": "ridge"}
    write_config(folder, content)
    once = {"bases", "manifest", "gather_moments", "maps_of_moments"}
    jobs = Counter(dict.fromkeys(once, 1)) + Counter(moments=3, image_features=3)
    assert jobs_of(snakemake(folder, target)) == jobs
    assert not plan(folder, target)
    objects = list((folder / "results/own/features/photos.zarr/image_embeddings").rglob("c/*/*"))
    objects = [path for path in objects if path.is_file()]
    assert len(objects) == 3 and min(path.stat().st_size for path in objects) > 700
    for path in objects:
        os.utime(path)  # as large ones that were copied without their times
    assert not plan(folder, target, compared=700)
    photograph(folder / "photos/class0/more.png", 77)  # into the last shard
    jobs = Counter(dict.fromkeys(once - {"bases"}, 1)) + Counter(moments=1, image_features=1)
    assert jobs_of(snakemake(folder, target)) == jobs
    assert not plan(folder, target)


def dump_of(run: Path, model: str) -> Dump:
    manifest = run / "manifest" / "world" / "images.parquet"
    return open_dump(run / "contributions" / model / "world.zarr", manifest, projected=True)


@pytest.mark.slow
def test_a_projected_dump_gives_the_ablation_of_the_full_one(
    finished: Path, tmp_path: Path
) -> None:
    projected, full = run_at("projected", finished, tmp_path), finished / "results" / "test"
    name = "applications/ablation/clip-small/world.parquet"
    same("ablation", projected / name, full / name)
    stores = [dump_of(run, "clip-small") for run in (projected, full)]
    narrow, whole = (dump.factors.columns for dump in stores)
    assert narrow < whole
    assert [dump.is_whole for dump in stores] == [False, True]
    every = np.arange(80)
    np.testing.assert_array_equal(*(dump.representation(every) for dump in stores))
    texts = read_table("text_features", full / "features/texts/clip-small.parquet")
    directions = np.stack(texts[texts["use"] == "concept"]["embedding"])
    one, other = (dump.contributions(every) @ directions.T for dump in stores)
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    ("level", "place"),
    [
        ("moments", "applications.ablation"), ("moments", "applications.spurious"),
        ("moments", "applications.retrieval"), ("projected", "scores"),
        ("projected", "applications.retrieval"),
    ],
)  # fmt: skip
def test_a_stage_that_needs_more_than_the_level_keeps_is_refused_by_name(
    level: str, place: str
) -> None:
    with pytest.raises(ConfigError, match=f"{place}: needs .* contributions.level: {level}"):
        load_config(changed(TINY, "contributions.level", level), check_files=False)


@pytest.mark.parametrize("method", sorted({*get_args(MapMethod)} - {"ridge"}))
def test_maps_that_need_every_image_are_refused_at_moments(method: str) -> None:
    content = changed(TINY, "contributions.level", "moments")
    content["maps"]["method"] = method
    said = f"'{method}' is fitted .* moments does not keep; valid: ridge; or .* maps.given"
    with pytest.raises(ConfigError, match=f"maps.method: {said}"):
        load_config(content, check_files=False)
    content["maps"] |= {"method": "ridge", "baselines": ["ridge", method]}
    with pytest.raises(ConfigError, match=f"maps.baselines: {said}"):
        load_config(content, check_files=False)


def test_maps_that_must_be_fitted_are_refused_where_nothing_fits_them() -> None:
    with pytest.raises(ConfigError, match="maps: those of deit are fitted .* maps.given"):
        load_config(changed(TINY, "contributions.level", "projected"), check_files=False)
    with pytest.raises(ConfigError, match="maps.method: 'anchored' is fitted"):  # the default
        load_config(changed(TINY, "contributions.level", "moments"), check_files=False)
    content = changed(TINY, "contributions.level", "moments")
    content["maps"] |= {"method": "ridge", "target": "label_text"}
    with pytest.raises(ConfigError, match="maps.target: 'label_text' .* valid: image"):
        load_config(content, check_files=False)


def test_shards_beyond_memory_are_for_moments_alone(finished: Path) -> None:
    content = at_level("moments", finished)
    content["contributions"]["shard_size"] = 1_000_000
    assert load_config(content, check_files=False).contributions.shard_size == 1_000_000
    with pytest.raises(ConfigError, match="shard_size: 1000000 images are more than a job"):
        load_config(changed(content, "contributions.level", "factored"), check_files=False)
