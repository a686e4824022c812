"""The configuration: every problem in one message, names checked, nothing heavy imported."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline_lib.config import (
    RunConfig,
    chunk_rows,
    image_root,
    known_models,
    load_config,
    space_of,
    weight_files,
)
from pipeline_lib.errors import ConfigError

BASE: dict[str, Any] = {
    "run": "try",
    "reference": {"id": "open_clip:ViT-B-32/laion2b_s34b_b79k"},
    "datasets": {
        "world": {"source": "world", "count": 20, "seed": 7},
        "spurious": {"source": "world_spurious", "train": 12, "test": 8, "seed": 1},
    },
    "models": {
        "deit": {"id": "timm:deit_tiny_patch16_224"},
        "clip": {"id": "open_clip:ViT-B-16/laion2b_s34b_b88k"},
    },
    "concepts": {"colour": ["red", "green"]},
    "contributions": {"datasets": ["world"], "shard_size": 10},
    "maps": {"dataset": "world"},
    "scores": {"dataset": "world"},
    "applications": {"ablation": {"dataset": "world"}, "retrieval": None},
}


def changed(**changes: Any) -> dict[str, Any]:
    """`BASE` with values set at dotted places (`__` for the dot); `...` removes the key."""
    raw = copy.deepcopy(BASE)
    for place, value in changes.items():
        *sections, key = place.split("__")
        section = raw
        for name in sections:
            section = section[name]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return raw


def problems(raw: dict[str, Any], **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(raw, **options)
    return str(error.value).split("\n  - ")[1:]


def test_a_valid_configuration_is_read_with_its_defaults() -> None:
    config = load_config(BASE)
    assert config.folder == Path("results/try")
    assert config.contributions.per == "head" and config.contributions.tolerance == 1e-5
    assert config.applications.retrieval is None and config.applications.spurious is None
    assert config.datasets["world"].split.train == 0.6
    assert load_config(config.model_dump(mode="json")) == config


def test_reading_it_imports_no_torch() -> None:
    code = "import sys, pipeline_lib.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_problem_is_reported_at_once_with_its_place() -> None:
    raw = changed(
        run="a/b",
        datasets__world={"source": "wrld", "count": 3},
        datasets__other={"source": "world", "cuont": 3},
        models__deit__weigths="x",
        models__nova={"id": "timm:deit_tny_patch16_224"},
        contributions__dtype="float23",
        maps__dataset="wrold",
        maps__heldout=2,
        aplications={},
    )
    found = problems(raw)
    assert found[:-1] == [
        "run: 'a/b' is not valid; use letters, digits, _ and -",
        "datasets.world: 'wrld' is not valid; did you mean world?",
        "datasets.other.count: is missing",
        "datasets.other.cuont: unknown key; did you mean count?",
        "models.deit.weigths: unknown key; did you mean weights?",
        "contributions.dtype: 'float23' is not valid; did you mean float32, float16, bfloat16?",
        "maps.heldout: Input should be less than 1 (given: 2)",
        "aplications: unknown key; did you mean applications?",
        "maps.dataset: 'wrold' is not in datasets; did you mean world?",
    ]
    assert found[-1].startswith("models.nova.id: timm has no model 'deit_tny_patch16_224'; did")
    assert "deit_tiny_patch16_224" in found[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps__dataset": "spurious"}, "maps.dataset: 'spurious' is not dumped"),
        ({"contributions__datasets": ["wurld"]}, "contributions.datasets: 'wurld' is not in"),
        ({"contributions__datasets": []}, "contributions.datasets: is empty; give at least 1"),
        ({"applications__spurious": {"dataset": "world"}}, "spurious_words: is missing"),
        ({"applications__heatmps": None}, "applications.heatmps: unknown key; did you mean heat"),
        ({"models__clip__id": "open_clip:ViT-B-61/x"}, "did you mean ViT-B-16"),
        ({"models__clip__id": "resnet50"}, "is not a model id; valid: timm:NAME"),
        ({"models__reference": {"id": "timm:deit_tiny_patch16_224"}}, "this name is kept"),
        ({"models": {}}, "models: is empty; give at least 1"),
        ({"models__a/b": {"id": "timm:deit_tiny_patch16_224"}}, "models.a/b: 'a/b' is not valid"),
        ({"reference": None}, "reference: is missing, but models.deit.id is no CLIP"),
        ({"reference__id": "timm:deit_tiny_patch16_224"}, "reference.id: .* is no open_clip"),
        ({"reference__id": None}, "reference: give either id .* or texts"),
        ({"datasets__world__split": {"train": 0.5, "val": 0.1, "test": 0.1}}, "sum to 0.7"),
        ({"datasets__world__bad_share": 1.5}, "datasets.world.bad_share: .*less than or equal"),
        ({"datasets__world__count": "many"}, "datasets.world.count: .*integer .given: 'many'"),
        ({"contributions__shard_size": 997}, "shard_size: 997 has no divisor from 16 to 64"),
        ({"contributions__shard_size": 0}, "shard_size: .*greater than or equal to 1"),
        ({"concepts__colour": ["red", "red"]}, "concepts.colour: 'red' stands twice; leave one"),
        ({"concepts__colour": ["red", "Red "]}, "'Red ' stands twice, first as 'red'; leave one"),
        ({"concepts__colour": []}, "concepts.colour: is empty; give at least 1"),
        ({"concepts__colour": ["red", " "]}, "concepts.colour.1: ' ' is blank; give a text"),
        (
            {"applications__heatmaps": {"dataset": "world", "directions": ["a cat", "a  cat"]}},
            "heatmaps.directions: 'a  cat' stands twice, first as 'a cat'",
        ),
        ({"concepts": {}}, "concepts: is empty, but scores are asked for"),
        ({"templates": "nowhere.txt"}, "templates: nowhere.txt does not exist"),
        ({"models__deit__weights": "no.safetensors"}, "models.deit.weights: no.safetensors does"),
        ({"models__deit__id": "timm:local-dir:nowhere"}, "models.deit.id: nowhere does not exist"),
        ({"concepts": "nowhere.yaml"}, "concepts: nowhere.yaml cannot be read"),
        ({"paths": {"photos": "x"}, "templates": "${photo}/a"}, "did you mean photos"),
        ({"applications__heatmaps": {"dataset": "world", "directions": "lable"}}, "mean label?"),
        (
            {"applications__retrieval": {"dataset": "world", "probes": ["my.png"]}},
            "applications.retrieval.probes.0: my.png does not exist",
        ),
    ],
)
def test_each_mistake_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(changed(**change))


def test_a_mistake_is_reported_once() -> None:
    assert len(problems(changed(maps__dataset="wrold"))) == 1


def test_a_reference_of_texts_needs_another_target(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(3))
    (tmp_path / "names.txt").write_text("a\nb\nc\n")
    texts = {"embeddings": str(tmp_path / "x.npy"), "names": str(tmp_path / "names.txt")}
    with pytest.raises(ConfigError, match="with reference.texts use label_text"):
        load_config(changed(reference={"texts": texts}))
    asked = {"reference": {"texts": texts}, "scores__texts_per_component": 3}
    config = load_config(changed(**asked, maps__target="label_text"))
    assert space_of(config, "deit") == "reference"


def test_columns_of_tables_are_checked(tmp_path: Path) -> None:
    frame = pd.DataFrame({"file": ["a.png"], "words": ["x"], "place": ["y"]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.docx").write_text("no table")
    section = {
        "source": "table",
        "path": str(tmp_path / "a.csv"),
        "columns": {"path": "fil", "group": ["words", "plce"], "label": "words"},
        "factors": ["place", "wrds"],
    }
    for kind in ("csv", "parquet"):
        section["path"] = str(tmp_path / f"a.{kind}")
        found = problems(changed(datasets__own=section))
        assert [problem.partition(":")[0] for problem in found] == [
            "datasets.own.columns.path", "datasets.own.columns.group.plce",
            "datasets.own.factors.wrds",
        ]  # fmt: skip
        assert "has no column 'fil'; did you mean file?" in found[0]
    section["path"] = str(tmp_path / "a.docx")
    assert "is no table; valid: .csv, .tsv, .parquet" in problems(changed(datasets__own=section))[0]


def test_missing_paths_are_all_named_and_can_be_left_unchecked() -> None:
    raw = changed(
        paths={"photos": "/absent/photos"},
        datasets__own={"source": "folder", "path": "${photos}/images"},
        text_pool="${photos}/pool.tsv",
    )
    assert problems(raw) == [
        "text_pool: /absent/photos/pool.tsv does not exist",
        "datasets.own.path: /absent/photos/images does not exist",
    ]
    several = raw | {"text_pool": ["imagenet:lemmas", "imagenet:lemas"], "maps": None}
    assert "text_pool: imagenet:lemas does not exist" in problems(several)
    config = load_config(raw, check_files=False)
    assert image_root(config, "own") == Path("/absent/photos/images")
    assert image_root(config, "world") == Path("results/try/world/world")


def test_words_are_filled_in_from_paths_environment_and_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_PLACE", "/from/environment")
    raw = changed(
        paths={"here": "${SOME_PLACE}/x", "there": "${NOT_SET_AT_ALL:-/otherwise}"},
        results="${here}/results",
        models__deit__weights="${there}/w.safetensors",
        report={"title": "${project}"},
    )
    config = load_config(raw, check_files=False)
    assert config.results == "/from/environment/x/results"
    assert config.models["deit"].weights == "/otherwise/w.safetensors"
    assert Path(config.report.title, "pipeline_lib", "config.py").is_file()


def test_files_that_are_no_configuration_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("run: [1\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(path)
    path.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="must hold keys and values"):
        load_config(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "absent.yaml")
    path.write_text(yaml.safe_dump(BASE))
    assert load_config(path) == load_config(BASE)


def test_yaml_cannot_make_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("run: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_config(path)


def test_concepts_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text("colour: [red, blue]\n")
    config = load_config(changed(concepts=str(path)))
    assert config.concepts == {"colour": ["red", "blue"]}


def test_the_space_of_a_model() -> None:
    config = load_config(BASE)
    assert space_of(config, "clip") == "clip" and space_of(config, "deit") == "reference"
    alone = changed(reference=None, maps=None, scores=None)
    assert space_of(load_config(alone), "deit") is None


@pytest.mark.parametrize(("rows", "chunk"), [(500, 50), (64, 64), (1, 1), (512, 64), (37, 37)])
def test_chunks_divide_shards(rows: int, chunk: int) -> None:
    assert chunk_rows(rows) == chunk


def test_known_models_are_those_of_the_libraries() -> None:
    from pipeline_lib._torchvision import ensure_torchvision

    ensure_torchvision()
    import open_clip
    import timm

    assert set(timm.list_models()) <= known_models("timm")
    assert set(open_clip.list_models()) == known_models("open_clip")
    assert known_models("no_such_library") == frozenset()


def test_the_files_that_decide_what_a_model_computes(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "README.md", "metrics.json"):
        (tmp_path / name).write_text("x")
    raw = changed(models__deit__id=f"timm:local-dir:{tmp_path}")
    config = load_config(raw)
    names = [path.name for path in weight_files(config.models["deit"])]
    assert names == ["config.json", "model.safetensors"]
    assert weight_files(config.models["clip"]) == []


@pytest.mark.parametrize("path", sorted(Path("config").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_are_valid_but_for_data_to_fill_in(path: Path) -> None:
    assert isinstance(load_config(path, check_files=False), RunConfig)


def test_more_texts_than_the_pool_has_are_refused_before_anything_runs(tmp_path: Path) -> None:
    first, second = tmp_path / "first.tsv", tmp_path / "second.txt"
    first.write_text("# words\ncolour\ta red cup\ncolour\ta blue cup\n\n", "utf-8")
    second.write_text("a tree\nA red cup\n", "utf-8")
    raw = changed(text_pool=[str(first), str(second)], scores__texts_per_component=4)
    message = "scores.texts_per_component: 4 are asked for, but text_pool has 3 texts"
    assert any(problem.startswith(message) for problem in problems(raw))
    load_config(changed(text_pool=[str(first), str(second)], scores__texts_per_component=3))
    by_default = changed(text_pool=str(first))
    assert any("10 are asked for" in problem for problem in problems(by_default))
    load_config(changed(text_pool=["imagenet:lemmas"], scores__texts_per_component=500))


def test_too_few_names_of_embeddings_are_said_to_be_names(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a tree\na red cup\n", "utf-8")
    (tmp_path / "rows.npy").write_bytes(b"")
    files = {"path": str(tmp_path / "rows.npy"), "names": str(tmp_path / "names.txt")}
    raw = changed(reference={"texts": files})
    (found,) = [p for p in problems(raw) if p.startswith("scores.texts_per_component")]
    assert "but reference.texts.names has 2 texts" in found
    assert "text_pool" not in found and "further files" not in found
