"""Bad input: a message that says what, where and what to do, no traceback, nothing half-written."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
from running import SMALL, changed, own_run, photograph, snakemake, write_config

from pipeline_lib._torchvision import ensure_torchvision
from pipeline_lib.errors import ModelError
from pipeline_lib.models import load_model


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
    bases = {"vit.bases.json", "vit.bases.safetensors"}  # small, and whole before the disk is full
    assert {path.name for path in left_over(tmp_path)} <= bases


def test_a_fault_of_the_project_says_what_to_report(tmp_path: Path) -> None:
    own_run(tmp_path)
    stray = tmp_path / "results/own/manifest/photos/shards/x.parquet"  # no number of a shard
    stray.parent.mkdir(parents=True)
    stray.touch()
    done = snakemake(tmp_path, "results/own/manifest/photos/images.parquet")
    assert done.returncode != 0
    said = done.stdout + done.stderr
    log = tmp_path / "results/own/logs/manifest/photos.log"
    facts = ["Please report it with:", "error: ValueError", "rule: manifest dataset=photos"]
    for fact in [*facts, "log: results/own/logs/manifest/photos.log", "configuration: ", "torch 2"]:
        assert fact in said, fact
    assert "Please report it with:" in log.read_text()


@pytest.mark.parametrize(
    ("model", "creator", "is_clip"),
    [
        ("timm:deit_tiny_patch16_224", "timm.create_model", False),
        ("open_clip:ViT-B-32/laion2b_s34b_b79k", "open_clip.create_model", True),
    ],
)
def test_without_a_network_the_keys_for_files_are_named(
    model: str, creator: str, is_clip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any, **settings: Any) -> None:
        raise OSError("no route to host")

    ensure_torchvision()
    monkeypatch.setattr(creator, unreachable)
    with pytest.raises(ModelError, match="no route to host.*`weights:` of the model") as error:
        load_model(model)
    for key in ("reference.weights", "reference.texts"):
        assert (key in str(error.value)) is is_clip
