"""The workflow as a whole: the tiny run of every stage, what runs again, and bad input."""

from __future__ import annotations

import copy
import os
import resource
import shutil
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from running import ROOT, plan, rules_of, snakemake, write_config

from pipeline_lib.artifacts import read_table
from pipeline_lib.dumps import open_dump, open_features

TINY = yaml.safe_load((ROOT / "config" / "test.yaml").read_text("utf-8"))
DUMPS = {"contributions", "contributions_store", "image_features", "image_features_store"}


def changed(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted place replaced."""
    content = copy.deepcopy(content)
    *sections, key = place.split(".")
    section = content
    for name in sections:
        section = section[name]
    section[key] = value
    return content


# The tiny run of every stage


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which config/test.yaml was run, from another place than the project."""
    folder = tmp_path_factory.mktemp("tiny")
    write_config(folder, TINY)
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return folder


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
    compare = {"report", "neighbours"}
    others = {(rule, names) for rule, names in jobs if not names.startswith("dino")}
    assert rules_of(others) <= compare, others


def test_a_plot_setting_runs_the_report_only(tiny: Path, config: Any) -> None:
    config("report.title", "Another title")
    assert rules_of(plan(tiny)) == {"report"}


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


# Photographs of a user's own: rows, shards and what runs again


def photograph(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, size=(40, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


SMALL = {
    "run": "own",
    "datasets": {"photos": {"source": "folder", "path": "photos"}},
    "models": {
        "vit": {
            "id": "timm:vit_tiny_patch16_224",
            "kwargs": {
                "pretrained": False, "img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1,
                "num_heads": 2, "num_classes": 4,
            },
        }
    },
    "contributions": {"datasets": ["photos"], "shard_size": 4, "batch_size": 4},
}  # fmt: skip


def own_run(folder: Path) -> Path:
    """A folder with ten photographs and a configuration that dumps them in three shards."""
    for number in range(10):
        photograph(folder / "photos" / f"class{number % 2}" / f"{number}.png", number)
    write_config(folder, SMALL)
    return folder


def shard_times(folder: Path) -> dict[str, int]:
    objects = (folder / "results/own/contributions/vit/photos.zarr/contributions/c").glob("*/0/0")
    return {path.parts[-3]: path.stat().st_mtime_ns for path in objects}


def dump(folder: Path) -> set[str]:
    """Run the dumps; gives the shards that were written."""
    before = shard_times(folder)
    done = snakemake(folder, "dumps")
    assert done.returncode == 0, done.stderr[-6000:]
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
    assert dump(own) == {"1", "2"}
    (own / "photos/class0/0.png").unlink()  # row 0
    assert dump(own) == {"0"}
    manifest = read_table("manifest", results / "manifest/photos/images.parquet")
    assert list(manifest["image_id"][:10]) == list(first["image_id"])
    assert manifest["image_id"][10] == "class0/more.png" and not manifest["active"][0]
    opened = open_dump(
        results / "contributions/vit/photos.zarr", results / "manifest/photos/images.parquet"
    )
    assert opened.n == 10
    assert np.isfinite(opened.contributions(np.arange(10))).all()


def test_touched_and_moved_photographs_are_not_dumped_again(own: Path) -> None:
    for path in (own / "photos").rglob("*.png"):
        os.utime(path)
    assert dump(own) == set()
    (own / "photos").rename(own / "elsewhere")
    write_config(own, changed(SMALL, "datasets.photos.path", "elsewhere"))
    assert dump(own) == set()
    (own / "elsewhere").rename(own / "photos")
    write_config(own, SMALL)
    assert dump(own) == set()


def test_another_size_of_shards_is_another_layout(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "copy", copy_function=shutil.copy2)
    write_config(tmp_path / "copy", changed(SMALL, "contributions.shard_size", 6))
    assert dump(tmp_path / "copy") == {"0", "1"}
    assert set(shard_times(tmp_path / "copy")) == {"0", "1"}


# Bad input: a message, no traceback, nothing half-written


def failure(folder: Path, *targets: str, **options: Any) -> str:
    done = snakemake(folder, *targets, **options)
    text = done.stdout + done.stderr
    assert done.returncode != 0, text
    assert "Traceback" not in text, text[-6000:]
    return text


def left_over(folder: Path) -> list[Path]:
    """Files under the results that are neither logs, benchmarks nor a finished manifest."""
    keep = ("logs", "benchmarks", "manifest")
    results = folder / "results" / "own"
    files = (path for path in results.rglob("*") if path.is_file())
    return [path for path in files if path.relative_to(results).parts[0] not in keep]


def test_photographs_that_cannot_be_read_fail_with_their_list(tmp_path: Path) -> None:
    own_run(tmp_path)
    photograph(tmp_path / "photos/class0/cut.jpg", 1)
    cut = tmp_path / "photos/class0/cut.jpg"
    cut.write_bytes(cut.read_bytes()[:600])
    (tmp_path / "photos/class1/text.png").write_text("a text, whatever its name says")
    message = failure(tmp_path, "dumps")
    assert "2 of 12 files cannot be used, more than bad_share (0) allows" in message
    assert "class0/cut.jpg: is damaged" in message and "class1/text.png: is no image" in message
    assert not (tmp_path / "results/own/manifest/photos/images.parquet").exists()
    assert left_over(tmp_path) == []


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    write_config(tmp_path, SMALL)
    assert "photos holds no image" in failure(tmp_path, "dumps")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("models.vit.id", "timm:vit_tny_patch16_224", "timm has no model 'vit_tny_patch16_224'"),
        ("models.vit.weights", "absent.safetensors", "absent.safetensors does not exist"),
        (
            "datasets.photos",
            {"source": "table", "path": "labels.csv", "columns": {"path": "file", "label": "kind"}},
            "labels.csv has no column 'kind'; valid: file, name",
        ),
    ],
)
def test_mistakes_in_the_configuration_end_before_any_job(
    tmp_path: Path, place: str, value: Any, message: str
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "labels.csv").write_text("file,name\na.png,x\n")
    write_config(tmp_path, changed(SMALL, place, value))
    assert message in failure(tmp_path, "dumps")
    assert not (tmp_path / "results").exists()


def test_weights_of_another_model_fail_the_dump(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    own_run(tmp_path)
    save_file({"head.weight": torch.zeros(4, 7)}, tmp_path / "wrong.safetensors")
    content = changed(SMALL, "models.vit.weights", "wrong.safetensors")
    content["contributions"]["shard_size"] = 10
    write_config(tmp_path, content)
    message = failure(tmp_path, "dumps")
    assert "wrong.safetensors does not fit" in message and "missing: cls_token" in message
    assert left_over(tmp_path) == []


def test_a_full_disk_leaves_nothing_under_a_final_name(tmp_path: Path) -> None:
    own_run(tmp_path)
    content = changed(SMALL, "contributions.shard_size", 10)
    content["models"]["vit"]["kwargs"] |= {"embed_dim": 2048, "num_heads": 16}
    write_config(tmp_path, content)
    limit = 200_000  # more than any file but the shard of contributions

    def full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    message = failure(tmp_path, "dumps", before=full_disk)
    assert "cannot be written" in message and "Free some space" in message
    assert left_over(tmp_path) == []


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
    assert set(coco["split"]) == {"test"}
