"""The workflow as a whole: a tiny run of every stage, and what runs again after a change."""

from __future__ import annotations

import json
import os
import re
import shutil
import textwrap
import zipfile
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from running import ROOT, TINY, changed, plan, rules_of, snakemake, write_config

from pipeline_lib.artifacts import read_provenance, read_table
from pipeline_lib.config import load_config
from pipeline_lib.dumps import open_dump, open_features
from pipeline_lib.features import embeddings_of
from pipeline_lib.hierarchy import coarse_parts
from pipeline_lib.labelling import Labeller, Sample
from pipeline_lib.maps import load_maps, without_test
from pipeline_lib.report.collect import expected_figures, read_timings
from pipeline_lib.report.provenance import run_facts
from pipeline_lib.scores import moments
from pipeline_lib.streamed import stored_coordinates
from pipeline_lib.textspan import random_pool

DUMPS = {"contributions", "contributions_store", "image_features", "image_features_store"}


# The tiny run of every stage


@pytest.fixture
def config(tiny: Path) -> Any:
    """Change the configuration of the tiny run for one test."""

    def change(place: str, value: Any) -> None:
        write_config(tiny, changed(TINY, place, value))

    yield change
    write_config(tiny, TINY)


def test_the_run_leaves_a_report_and_complete_dumps(tiny: Path) -> None:
    results = tiny / "results" / "test"
    assert (results / "report" / "index.html").stat().st_size > 10_000
    for dataset, count in (("world", 80), ("spurious", 120)):
        manifest = results / "manifest" / dataset / "images.parquet"
        for model in TINY["models"]:
            dump = open_dump(results / "contributions" / model / f"{dataset}.zarr", manifest)
            everything = np.arange(dump.n)
            assert dump.n == count
            sums = dump.contributions(everything).sum(axis=1)
            z = dump.representation(everything)
            assert np.linalg.norm(sums - z, axis=1).max() < 1e-5 * np.linalg.norm(z, axis=1).min()
    features = open_features(
        results / "features" / "world.zarr", results / "manifest/world/images.parquet"
    )
    norms = np.linalg.norm(features.embeddings(np.arange(80)), axis=1)
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)


def test_every_job_left_a_log_and_a_benchmark_and_nothing_half_written(tiny: Path) -> None:
    results = tiny / "results" / "test"
    logs = {p.relative_to(results / "logs").with_suffix("") for p in results.glob("logs/**/*.log")}
    timed = {
        p.relative_to(results / "benchmarks").with_suffix("")
        for p in results.glob("benchmarks/**/*.tsv")
    }
    assert logs == timed and len(logs) > 30
    assert list(results.rglob("*.part")) == []


def test_snakemakes_own_report_has_captions_and_categories(copied: Path) -> None:
    done = snakemake(copied, "--report", "report.zip")
    assert done.returncode == 0, done.stderr[-3000:]
    with zipfile.ZipFile(copied / "report.zip") as archive:
        page = archive.read("report/report.html").decode()
        kept = {name.rpartition("/")[2] for name in archive.namelist()}
    part = page[page.index('<script id="results">') :]
    shown, _ = json.JSONDecoder().raw_decode(part[part.index("{") :])
    figures = expected_figures(load_config(yaml.safe_load((copied / "config.yaml").read_text())))
    wanted = {f"figures/{name}.svg": (name, stage) for name, stage in figures.items()}
    wanted["index.html"] = ("page", "report")
    assert set(shown) == {f"results/test/report/{path}" for path in wanted}
    words = re.sub(r"\s+", " ", part)
    for path, (name, stage) in wanted.items():
        caption = (ROOT / "workflow" / "report" / f"{name}.rst").read_text("utf-8").split()
        found = unescape(re.sub("<[^>]+>", "", shown[f"results/test/report/{path}"]["caption"]))
        assert found.split() == caption, name
        assert f'"{stage.capitalize()}": {{' in words
        assert path.rpartition("/")[2] in kept


def test_the_page_says_what_was_run_with_what(tiny: Path) -> None:
    results = tiny / "results" / "test"
    page = (results / "report" / "index.html").read_text("utf-8")
    part = page[page.index('id="provenance"') :]
    text = " ".join(unescape(re.sub("<[^>]+>", " ", part)).split())
    config = load_config(yaml.safe_load((tiny / "config.yaml").read_text("utf-8")))
    facts = run_facts(config)
    assert f"configuration hash {facts['configuration hash']}" in text
    assert facts["packages"] in text and f"Python {facts['Python']}" in text
    assert re.search(r"git commit [0-9a-f]{40}", text)
    assert re.search("device of the decomposition (cpu|cuda)", text)
    assert "seed 0" in text
    for key in config.model_dump():
        assert f"{key}:" in text, key
    for model in config.models:
        known = json.loads((results / "contributions" / f"{model}.bases.json").read_text())
        assert known["weight_hash"] in text
        made = read_provenance(results / "contributions" / model / "world.components.parquet")
        for fact in (made["readout"], *made["preprocessing"]):
            assert " ".join(fact.split()) in text, fact
    times = text[text.index("Time and memory") :]
    for stage in read_timings(results / "benchmarks")["stage"].unique():
        assert re.search(rf"\b{stage} \d+ [\d.]+ (s|min|h)", times), stage


def test_nothing_is_left_to_do(tiny: Path) -> None:
    assert not plan(tiny)


def test_a_concept_word_runs_texts_and_scores_and_no_dump(tiny: Path, config: Any) -> None:
    config("concepts.colour", ["red", "green", "purple"])
    rules = rules_of(plan(tiny))
    assert {"texts", "scores", "report"} <= rules
    assert not rules & (DUMPS | {"world", "manifest", "maps"})


def test_another_model_runs_that_model_only(tiny: Path, config: Any) -> None:
    config("models.dino", {"id": "timm:local-dir:resources/models/dino"})
    jobs = plan(tiny)
    own = {"contributions", "contributions_store", "maps", "scores", "ablation", "retrieval"}
    assert own <= rules_of(jobs)
    compare = {"report", "validation", "comparison", "similarity"}
    others = {(rule, names) for rule, names in jobs if not names.startswith("dino")}
    assert rules_of(others) <= compare, others


def test_a_plot_setting_runs_the_report_only(tiny: Path, config: Any) -> None:
    config("report.title", "Another title")
    assert rules_of(plan(tiny)) == {"report"}


@pytest.fixture
def copied(tiny: Path, tmp_path: Path) -> Path:
    """The tiny run in a folder of its own, to run more in."""
    return Path(shutil.copytree(tiny, tmp_path / "copied", copy_function=shutil.copy2))


def test_probes_of_ones_own_run_alone_and_get_a_grid(copied: Path) -> None:
    results = copied / "results" / "test"
    probe = sorted((results / "world/world/images").glob("*.png"))[0]
    write_config(copied, changed(TINY, "applications.retrieval.probes", [str(probe)]))
    assert rules_of(plan(copied)) == {"probes", "report"}
    target = "results/test/applications/retrieval/deit/world.probes.parquet"
    done = snakemake(copied, target)
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_table("retrieval_probes", copied / target)
    assert set(found["feature"]) == {"shape", "colour"}
    first = found[found["rank"] == 0]
    assert (first["path"] == f"images/{probe.name}").all()  # it is an image of the data set
    picture = (copied / target).parent / found["file"].iloc[0]
    assert picture.stat().st_size > 1000
    wrong = copied / "wrong.png"
    wrong.write_text("no picture")
    write_config(copied, changed(TINY, "applications.retrieval.probes", [str(wrong)]))
    done = snakemake(copied, target)
    assert done.returncode and "wrong.png: is no image" in done.stderr
    assert "Traceback" not in done.stderr


def test_maps_that_were_shipped_are_taken_as_they_are(copied: Path) -> None:
    results, shipped = copied / "results" / "test", copied / "shipped"
    shutil.copytree(results / "maps", shipped)
    write_config(copied, changed(TINY, "maps.given", str(shipped)))
    assert plan(copied)["maps", "deit"] == 1
    done = snakemake(copied, "results/test/maps/deit.safetensors")
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("weights", "bias"):
        own, given = (
            getattr(load_maps(folder / "deit.safetensors"), name)
            for folder in (results / "maps", shipped)
        )
        np.testing.assert_array_equal(own.numpy(), given.numpy())
    metrics = read_table("map_metrics", results / "maps" / "deit.metrics.parquet")
    assert metrics["chosen"].any()


@pytest.mark.parametrize("method", ["omp", "nonnegative"])
def test_all_that_stands_beside_a_label_is_made_by_its_method(method: str, copied: Path) -> None:
    """Texts, random vectors and the parts above: the library asked for each of them by hand."""
    results = copied / "results" / "test"
    write_config(copied, changed(TINY, "scores.method", method))
    done = snakemake(copied, "results/test/scores/deit/world.labels.parquet")
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = results / "manifest/world/images.parquet"
    dump = open_dump(results / "contributions/deit/world.zarr", manifest)
    positions = without_test(dump.manifest["split"])
    encoded = stored_coordinates(dump.factors, dump.coordinates, positions)
    seen = Sample(moments(encoded, load_maps(results / "maps/deit.safetensors")), encoded)
    texts = read_table("text_features", results / "features/texts/reference.parquet")
    words, pool = texts.loc[texts["use"] == "pool", "text"].tolist(), embeddings_of(texts, "pool")
    count = TINY["scores"]["texts_per_component"]

    labels = read_table("labels", results / "scores/deit/world.labels.parquet")
    vectors = random_pool(*pool.shape, seed=TINY["seed"])
    others = {"random": vectors, "random_texts": embeddings_of(texts, "random")}
    random = {
        f"cumulative_{kind}": Labeller(method, each).labels(seen, count=count, min_gain=0.0)
        for kind, each in others.items()
    }
    chosen = Labeller(method, pool).labels(seen, count=count)
    for component, part in labels.groupby("component"):
        assert part["text"].tolist() == [words[text] for text in chosen[component].texts]
        for name, each in random.items():
            want = np.cumsum(each[component].gains)[: len(part)]
            np.testing.assert_allclose(part[name], want, atol=1e-4)

    hierarchy = read_table("hierarchy", results / "scores/deit/world.hierarchy.parquet")
    parts = coarse_parts(dump.components)
    above = Labeller(method, pool).labels(seen.parts(parts), count=count)
    said = hierarchy.groupby(["level", "node"])["text"].apply(list)
    for part, label in zip(parts, above, strict=True):
        want = [words[text] for text in label.texts]
        assert said[part.level, part.node] == (want or [""])


def test_labels_are_told_zero_shot_where_components_are_texts(tiny: Path) -> None:
    """The whole representation by the nearest text of a class, from the dump by hand."""
    results = tiny / "results" / "test"
    manifest = results / "manifest/world/images.parquet"
    dump = open_dump(results / "contributions/deit/world.zarr", manifest)
    positions = without_test(dump.manifest["split"])
    maps = load_maps(results / "maps/deit.safetensors")
    images = maps.apply_total(torch.from_numpy(dump.contributions(positions)))
    texts = read_table("text_features", results / "features/texts/reference.parquet")
    labels = dump.manifest["label"].iloc[positions].to_numpy()
    classes = texts[(texts["use"] == "class") & texts["text"].isin(labels)]
    told = classes["text"].to_numpy()[(images @ embeddings_of(classes, "class").T).argmax(1)]
    rebuilt = read_table("reconstruction", results / "scores/deit/world.reconstruction.parquet")
    rows = rebuilt[rebuilt["reader"] == "zero_shot"]
    assert set(rows["feature"]) == {"label"} and set(rows["n"]) == {len(labels)}
    assert set(rows.loc[rows["texts"] < 0, "accuracy"].round(9)) == {
        round(float((told == labels).mean()), 9)
    }
    assert rows.loc[rows["texts"] == 0, "accuracy"].max() < 1


def test_how_fast_to_compute_is_no_reason_to_compute_again(tiny: Path, config: Any) -> None:
    config("contributions.batch_size", 7)
    assert not rules_of(plan(tiny)) & DUMPS


def test_a_touch_of_an_image_runs_the_manifest_at_most(tiny: Path) -> None:
    image = next((tiny / "results/test/world/world/images").glob("*.png"))
    os.utime(image)
    assert rules_of(plan(tiny)) <= {"manifest"}


def test_a_deleted_shard_is_made_again(tiny: Path) -> None:
    victim = tiny / "results/test/contributions/deit/world.zarr/representation/c/0/0"
    content = victim.read_bytes()
    facts = victim.stat()
    victim.unlink()
    try:
        assert plan(tiny)["contributions", "deit world 0"] == 1
    finally:
        victim.write_bytes(content)
        os.utime(victim, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_results_can_move_with_their_folder(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "elsewhere", copy_function=shutil.copy2)
    assert not plan(tmp_path / "elsewhere")


def test_another_workflow_can_import_this_one(tiny: Path, tmp_path: Path) -> None:
    write_config(tmp_path, TINY)
    importer = tmp_path / "Snakefile"
    importer.write_text(
        textwrap.dedent(
            f"""
            module atlas:
                snakefile: "{ROOT / "workflow" / "Snakefile"}"
                config: config

            use rule * from atlas as atlas_*

            rule mine:
                default_target: True
                input: rules.atlas_all.input
            """
        )
    )
    jobs = plan(tmp_path, snakefile=importer)
    assert {"atlas_world", "atlas_manifest"} <= rules_of(jobs)


# Real photographs


PHOTOS = Path(os.environ.get("VIT_ATLAS_PHOTOS", ROOT.parent / "shared" / "data")).resolve()


@pytest.mark.photos
@pytest.mark.skipif(
    not PHOTOS.is_dir(), reason="no photographs: set VIT_ATLAS_PHOTOS to the folder that holds them"
)
def test_real_photographs_are_listed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_ATLAS_PHOTOS", str(PHOTOS))
    write_config(tmp_path, yaml.safe_load((ROOT / "config/photos.yaml").read_text("utf-8")))
    tables = [f"results/photos/manifest/{name}/images.parquet" for name in ("imagenet", "coco")]
    done = snakemake(tmp_path, *tables)
    assert done.returncode == 0, done.stderr[-3000:]
    imagenet, coco = (read_table("manifest", tmp_path / table) for table in tables)
    assert len(imagenet) == 1000 and imagenet["label"].nunique() == 1000
    assert imagenet[["width", "height"]].min(axis=None) >= 200
    assert len(coco) == 128 and coco["mask"].notna().all()
    assert set(coco["split"]) == {"val", "test"}  # recipes of maps are chosen on val
