"""The command line: every verb, its help with an example, exit codes, no traceback for mistakes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from planted import COLOURS, SHAPES, WIDTH, ArrayDump, planted_scores, value_directions

from pipeline_lib.command_line import MISTAKE, main, make_parser
from pipeline_lib.config import load_config
from pipeline_lib.errors import ConfigError, DataError, ModelError
from pipeline_lib.maps import identity_maps
from pipeline_lib.models import load_model
from pipeline_lib.questions import Run, contributions_of, describe, direction_of, draw_grid, find
from pipeline_lib.retrieval_ways import published_way, rank_components
from pipeline_lib.search import COMPONENTS, alike, way_to_search

ROOT = Path(__file__).parents[2]
VERBS = ("models", "inspect", "retrieve", "heatmap", "describe")
SWIN = f"timm:local-dir:{ROOT}/resources/models/swin"
DEIT = f"timm:local-dir:{ROOT}/resources/models/deit"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(word) for word in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    example = re.search(r"example:\n  python -m pipeline_lib (.+)", said)
    assert example is not None
    words = example.group(1).split()
    assert words[0] == verb and make_parser().parse_args(words).answer is not None


def test_models_are_listed_and_filtered(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "models", "deit_tiny")
    assert code == 0 and "timm:deit_tiny_patch16_224" in out.splitlines()
    assert all("deit_tiny" in line for line in out.splitlines())
    code, out, _ = run(capsys, "models", "--library", "open_clip", "ViT-B-32/laion400m")
    assert code == 0 and "open_clip:ViT-B-32/laion400m_e31" in out
    code, out, _ = run(capsys, "models", "--support", "deit")
    assert code == 0 and out.startswith("| family") and "deit_distilled" in out
    code, _, err = run(capsys, "models", "no_such_model")
    assert code == MISTAKE and "no model of timm has 'no_such_model'" in err


def test_inspect_says_what_a_model_is_made_of(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", DEIT, "--components")
    assert code == 0
    assert "16 head, 4 mlp, 1 stem, 1 bias" in out
    assert "blocks.3.attn/head3" in out
    error = float(re.search(r"sum error +(\S+)", out).group(1))  # type: ignore[union-attr]
    assert 0 < error < 1e-5
    code, _, err = run(capsys, "inspect", "timm:deit_tny")
    assert code == MISTAKE and "deit" in err and "Traceback" not in err


def test_heatmap_draws_the_class_asked_for(
    capsys: pytest.CaptureFixture[str], picture: Path, tmp_path: Path
) -> None:
    out = tmp_path / "map.png"
    code, said, _ = run(capsys, "heatmap", SWIN, picture, "--class", "star", "--out", out)
    assert code == 0 and said.strip() == f"{out}: star"
    assert Image.open(out).width > 100
    code, _, err = run(capsys, "heatmap", SWIN, picture, "--class", "stra", "--out", out)
    assert code == MISTAKE and "did you mean star" in err
    code, _, err = run(capsys, "heatmap", SWIN, picture, "--text", "a star", "--out", out)
    assert code == MISTAKE and "has no text tower" in err
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no picture")
    code, _, err = run(capsys, "heatmap", SWIN, wrong, "--out", out)
    assert code == MISTAKE and "wrong.png: is no image" in err
    code, _, err = run(capsys, "heatmap", DEIT, picture, "--out", out)
    assert code == MISTAKE and "has no classifier" in err  # two heads on two tokens
    code, _, err = run(capsys, "heatmap", SWIN, picture, "--components", "blocks.9", "--out", out)
    assert code == MISTAKE and "unknown component 'blocks.9'" in err


def test_a_text_direction_is_that_of_the_clip_itself() -> None:
    model = load_model(f"open_clip:local-dir:{ROOT}/resources/models/clip-small")
    images = torch.zeros(1, 3, *model.input_size)
    found = direction_of(model, images, None, "a red star")
    texts = model.encode_text(["a red star", "a green star"]).numpy()
    assert (texts @ found.vector).argmax() == 0
    with pytest.raises(ModelError, match="has no classifier; ask a CLIP model with --text"):
        direction_of(model, images, "star", None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["retrieve", "none.yaml", "--model", "m", "--property", "p", "--text", "t"], "none.yaml"),
        (["describe", "config/demo.yaml", "x.png", "--model", "dit"], "did you mean deit"),
        (
            ["describe", "config/demo.yaml", "x.png", "--model", "deit", "--dataset", "wrld"],
            "did you mean world",
        ),
    ],
)
def test_mistakes_end_with_their_message(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(ROOT)
    code, out, err = run(capsys, *arguments)
    assert code == MISTAKE and message in err and not out and "Traceback" not in err


def test_an_unknown_verb_and_a_wrong_number_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments in (["retriev"], ["describe", "c", "i", "--model", "m", "--texts", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == MISTAKE
    assert "0 is no count" in capsys.readouterr().err


def test_it_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline_lib", "models", "--support", "deit"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0 and "deit" in done.stdout and not done.stderr


CARRIERS = {"shape": "blocks.2.attn/head1", "colour": "blocks.1.attn/head0"}


class PlantedRun(Run):
    """A run of a planted dump; an image file is named by its place in the dump."""

    def scores(self) -> pd.DataFrame:
        return planted_scores(self.dump.components, CARRIERS)

    def choices(self) -> pd.DataFrame | None:
        return None

    def contributions_of(self, image: str | Path) -> np.ndarray:
        return self.dump.contributions(np.array([int(str(image))]))


@pytest.fixture
def planted(dump: ArrayDump, monkeypatch: pytest.MonkeyPatch) -> PlantedRun:
    monkeypatch.chdir(ROOT)
    directions = value_directions()
    rows = [
        {"use": use, "feature": feature, "text": value, "embedding": directions[value]}
        for feature, values in {"shape": SHAPES, "colour": COLOURS}.items()
        for value in values
        for use in ("concept", "pool")
    ]
    config = load_config("config/demo.yaml")
    return PlantedRun(config, "deit", "world", dump, identity_maps(WIDTH), pd.DataFrame(rows))


def test_images_are_found_by_text_and_by_image(planted: PlantedRun) -> None:
    manifest = planted.dump.manifest.set_index("image_id")
    red = find(planted, "colour", text="red", components=1, count=6)
    assert (manifest.loc[red["image_id"], "colour"] == "red").all()
    assert red["score"].is_monotonic_decreasing
    like = find(planted, "shape", image="7", components=1, count=6)
    assert set(manifest.loc[like["image_id"], "shape"]) == {manifest["shape"].iloc[7]}
    for wrong, message in (
        ({"text": "rd"}, "'rd' is no text of 'colour'; did you mean red"),
        ({}, "either by a text or by an image"),
        ({"text": "red", "image": "7"}, "either by a text or by an image"),
    ):
        with pytest.raises(DataError, match=message):
            find(planted, "colour", **wrong)


def test_an_image_is_described_by_what_it_shows(planted: PlantedRun) -> None:
    found = describe(planted, "7", texts=2)
    row = planted.dump.manifest.iloc[7]
    assert set(found["text"]) == {row["shape"], row["colour"]}
    for text, carriers in zip(found["text"], found["carriers"], strict=True):
        feature = "shape" if text in SHAPES else "colour"
        assert carriers.startswith(CARRIERS[feature])


def test_a_grid_shows_the_probe_and_the_images_found(picture: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file in files:
        Image.new("RGB", (30, 20), "red").save(file)
    draw_grid({"colour": files, "shape": files}, tmp_path / "grid.png", picture)
    grid = Image.open(tmp_path / "grid.png")
    assert grid.size == (3 * 134 + 6, 2 * 154)
    probe = Image.open(picture)
    assert grid.getpixel((6, 20)) == probe.getpixel((0, 0)) == grid.getpixel((6, 154 + 20))
    assert grid.getpixel((6 + 134, 20)) == (255, 0, 0)


def test_the_way_that_the_run_has_chosen_is_taken(planted: PlantedRun) -> None:
    scores = planted.scores()
    row = {"query": "image", "feature": "shape", "way": "sum", "by": "margin", "components": 2}
    choices = pd.DataFrame([row | {"chosen": True}, row | {"components": 4, "chosen": False}])
    way = way_to_search(scores, choices, "image", "shape")
    assert (way.kind, way.by, len(way.components)) == ("sum", "margin", 2)
    assert way.components[0] == rank_components(scores, "shape")[0]
    usual = way_to_search(scores, choices, "text", "shape")
    assert usual == published_way(scores, "shape", COMPONENTS)
    assert way_to_search(scores, choices, "image", "shape", 3) == published_way(scores, "shape", 3)


@pytest.mark.parametrize("kind", ["sum", "subspace"])
def test_a_probe_finds_itself_and_images_like_it(dump: ArrayDump, kind: str) -> None:
    directions, values = value_directions(), dump.manifest["shape"]
    rows = {"use": "concept", "feature": "shape", "text": SHAPES}
    texts = pd.DataFrame(rows).assign(embedding=[directions[value] for value in SHAPES])
    choice = {"query": "image", "feature": "shape", "way": kind, "by": "score", "components": 1}
    scores = planted_scores(dump.components, {"shape": CARRIERS["shape"]})
    found = alike(
        dump, identity_maps(WIDTH), texts, scores, pd.DataFrame([choice | {"chosen": True}]),
        dump.values[7], components=None, count=9, seed=0,
    )  # fmt: skip
    assert found["image_id"].iloc[0] == dump.manifest["image_id"].iloc[7]
    shown = dump.manifest.set_index("image_id").loc[found["image_id"], "shape"]
    assert (shown == values.iloc[7]).all()
    assert set(found["way"]) == {kind} and found["rank"].tolist() == list(range(9))


def test_a_probe_that_cannot_be_read_is_refused(tmp_path: Path, dump: ArrayDump) -> None:
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no picture")
    settings = load_config(ROOT / "config/demo.yaml", check_files=False).contributions
    with pytest.raises(DataError, match=r"wrong.png: is no image"):
        contributions_of(load_model(DEIT), wrong, settings, dump)


def test_runs_that_lack_what_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="no model 'swn'"):
        Run.open("config/demo.yaml", "swn")


def test_a_fault_of_the_project_says_what_to_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: str) -> list[str]:
        raise RuntimeError("a fault")

    monkeypatch.setattr("pipeline_lib.questions.list_models", broken)
    assert main(["models", "deit"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and "Please report it with:" in said
    for fact in ("error: RuntimeError: a fault", "broken", "pipeline_lib models deit", "torch 2"):
        assert fact in said, fact
