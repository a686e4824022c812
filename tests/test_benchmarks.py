"""Every benchmark of the documentation runs as its command says, at a size of seconds.

What it measures at full size stands in `docs/`; here a benchmark must end, and write its table.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from documents import ROOT, commands

from benchmarks.text_labels import MAIN
from pipeline_lib.artifacts import read_table

#: Module to the options that make it small, where `{run}` is a finished run of the tiny
#: configuration, and to a row that its table then has.
SMALL = {
    "applications": ("--images 100 --threads 1", r"codes +[\d.]+ +[\d.]+"),
    "counterparts": ("{run}", r"\| first factor the same \| [\d.]+"),
    "coverage": (
        "--family vit_tiny_patch16_224 --out coverage --docs page.md",
        r"vit_tiny_patch16_224",
    ),
    "decompose": (
        "--models vit_small_patch16_224 --batch 1 --repeats 1 --mode head --out t.parquet",
        r"\| vit_small_patch16_224 \| head \| 1 \|",
    ),
    "dump": (
        "--model vit_tiny_patch16_224 --images 4 --size 64 --batch 2 --threads 1 --rounds 1 "
        "--only rates",
        r"\| vit_tiny_patch16_224, 1 threads.* \| [\d.]+ \|",
    ),
    "map_methods": ("{run} --docs page.md", r"\| deit \| ridge \| [\d.]+"),
    "maps": ("--images 200 --width 48 --threads 1 --method ridge --docs page.md", r"\| ridge \|"),
    "score_methods": ("{run} --docs page.md", r"\| deit"),
    "text_labels": (
        "{run} --count 2 --methods textspan nonnegative --docs page.md",
        r"\| deit \| nonnegative \| [\d.]+ / [\d.]+ \|",
    ),
    "textspan": (
        "--images 60 --heads 2 --texts 50 --count 3 --threads 1 --method textspan --docs page.md",
        r"\| textspan \|",
    ),
}


def run(module: str, options: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *options.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_benchmark_of_the_documentation_is_run_here() -> None:
    named = {
        command.words[2].removeprefix("benchmarks.")
        for command in commands()
        if command.words[:2] == ("python", "-m") and command.words[2].startswith("benchmarks.")
    }
    assert named == {*SMALL, "photographs"}


@pytest.mark.parametrize("module", SMALL)
def test_a_small_benchmark_ends_with_its_table(module: str, finished: Path, tmp_path: Path) -> None:
    options, row = SMALL[module]
    out = run(module, options.format(run=finished / "results/test"), tmp_path)
    page = tmp_path / "page.md"
    text = page.read_text("utf-8") if page.exists() else out
    assert re.search(row, text), text


def test_the_page_of_the_text_labels_says_how_it_was_made(finished: Path, tmp_path: Path) -> None:
    """By which command, options and all; and how often shuffled categories would be right."""
    options = f"{finished / 'results/test'} --count 1 --methods omp --seed 3 --docs page.md"
    run("text_labels", options, tmp_path)
    text = (tmp_path / "page.md").read_text("utf-8")
    assert f"`python -m benchmarks.text_labels {options}`" in text

    results = finished / "results/test"
    texts = read_table("text_features", results / "features/texts/reference.parquet")
    pool = texts.loc[texts["use"] == "pool", "feature"]
    truths = [read_table("truth", path) for path in results.glob("scores/*/*.truth.parquet")]
    asked = sum((pool == name).mean() for name in MAIN if name in set(truths[0]["feature"]))
    (line,) = re.findall(r"^\| omp \| (.*) \|$", text, re.MULTILINE)
    counts = [float(cell) for cell in line.split(" | ")]
    # One text is of a category as often as the pool: the count is the sum of these shares.
    assert asked > 0
    for chance in (counts[1], counts[3]):
        assert chance == pytest.approx(len(truths) * asked, abs=0.15)


def test_peaks_of_memory_are_measured_alone(tmp_path: Path) -> None:
    run("decompose", "--peaks --models vit_small_patch16_224 --batch 2 --mode head token", tmp_path)
    table = pd.read_parquet(tmp_path / "results/benchmarks/decompose.parquet").set_index("mode")
    head, token = (table.loc[mode] for mode in ("head", "token, 8 directions"))
    assert head["batch"] == 2
    assert 0 < head["peak_mb"] < token["peak_mb"] < head["activations_mb"]


def test_the_page_of_the_photographs_is_made_from_a_run(finished: Path) -> None:
    from benchmarks.photographs import page

    text = page(finished / "results/test", "Made now.", ("deit", "world", "world"))
    assert "## Zero-shot segmentation" in text and "| C | decomposition |" in text
    assert "nan" not in text
