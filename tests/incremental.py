"""Changes to a finished run, and what each makes run again: for tests, and for docs/design.md.

`PYTHONPATH=tests python -m incremental FOLDER` prints the table of a folder in which
config/test.yaml was run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from running import ROOT, TINY, changed, plan, write_config

from pipeline_lib.artifacts import STAGE_VERSIONS

#: Rules whose jobs are the expensive asset, or make what all depends on.
DUMPS = frozenset({"bases", "contributions", "contributions_store", "image_features"})
DATA = frozenset({"world", "manifest"})

Change = Callable[[Path], AbstractContextManager[Path]]


@dataclass(frozen=True)
class Case:
    """A change to a copy of a finished run.

    Attributes
    ----------
    what
        The change in words.
    change
        Makes it; gives the Snakefile to plan with, and takes the change back.
    jobs
        How many jobs of some rules must run: all others of `DUMPS` and `DATA` must not.
    only
        Rules that may run at all; any but the expensive ones where it is `None`.
    model
        Jobs with a model in their wildcards must be of this one.
    """

    what: str
    change: Change
    jobs: dict[str, int]
    only: frozenset[str] | None = None
    model: str | None = None


def setting(place: str, value: Any) -> Change:
    """Another value in the configuration; `{folder}` in a text stands for the run's folder."""

    @contextmanager
    def change(folder: Path) -> Iterator[Path]:
        filled = value.replace("{folder}", str(folder)) if isinstance(value, str) else value
        write_config(folder, changed(TINY, place, filled))
        yield ROOT / "Snakefile"

    return change


@contextmanager
def another_pool(folder: Path) -> Iterator[Path]:
    pool = folder / "pool.txt"
    pool.write_text((ROOT / TINY["text_pool"]).read_text("utf-8") + "a picture of nothing\n")
    write_config(folder, changed(TINY, "text_pool", str(pool)))
    yield ROOT / "Snakefile"


def model_folder(replaced: bool) -> Change:
    """The weights of a model moved elsewhere, and there replaced or not."""

    @contextmanager
    def change(folder: Path) -> Iterator[Path]:
        copy = folder / "moved"
        shutil.copytree(ROOT / "resources/models/deit", copy)
        if replaced:
            weights = copy / "model.safetensors"
            content = bytearray(weights.read_bytes())
            content[-1] ^= 1
            weights.write_bytes(bytes(content))
        write_config(folder, changed(TINY, "models.deit.id", f"timm:local-dir:{copy}"))
        yield ROOT / "Snakefile"

    return change


def edited_code(pattern: str, addition: str) -> Change:
    """A project with a further line in files of its code."""

    @contextmanager
    def change(folder: Path) -> Iterator[Path]:
        project = folder / "project"
        for name in ("workflow", "profiles", "config", "pipeline_lib"):
            shutil.copytree(ROOT / name, project / name)
        shutil.copy(ROOT / "Snakefile", project)
        (project / "resources").symlink_to(ROOT / "resources")
        paths = list(project.rglob(pattern))
        assert paths, pattern
        for path in paths:
            path.write_text(path.read_text("utf-8") + addition)
        yield project / "Snakefile"

    return change


def raised(stage: str) -> Change:
    """Another version of a stage: what is done where its results change with the code."""

    @contextmanager
    def change(folder: Path) -> Iterator[Path]:
        STAGE_VERSIONS[stage] += 1
        try:
            yield ROOT / "Snakefile"
        finally:
            STAGE_VERSIONS[stage] -= 1

    return change


@contextmanager
def touched(folder: Path) -> Iterator[Path]:
    for path in (folder / "results/test/world").rglob("*.png"):
        os.utime(path)
    yield ROOT / "Snakefile"


@contextmanager
def copied_without_times(folder: Path) -> Iterator[Path]:
    """Every file gets the time of its copying, in no order."""
    for number, path in enumerate(sorted(folder.rglob("*"), key=lambda p: p.name[::-1])):
        if path.is_file() and ".snakemake" not in path.parts:
            os.utime(path, (1.7e9 + number, 1.7e9 + number))
    yield ROOT / "Snakefile"


@contextmanager
def nothing(folder: Path) -> Iterator[Path]:
    yield ROOT / "Snakefile"


NEW_MODEL = {"bases": 1, "contributions": 3, "contributions_store": 2, "maps": 1, "scores": 1}

CASES = {
    "nothing": Case("nothing (results copied to another folder)", nothing, {}, frozenset()),
    "concept": Case(
        "a concept's words", setting("concepts.colour", ["red", "green", "purple"]),
        {"texts": 2, "scores": 2, "report": 1, "maps": 0},
    ),
    "pool": Case(
        "the text pool", another_pool, {"texts": 2, "scores": 2, "report": 1, "maps": 0},
    ),
    "model": Case(
        "a model added",
        setting("models.dino", {"id": "timm:local-dir:resources/models/dino"}),
        NEW_MODEL, model="dino",
    ),
    "lambda": Case(
        "λ of the maps (`maps.orthogonality`)", setting("maps.orthogonality", 0.5),
        {"maps": 1, "scores": 1, "report": 1, "texts": 0}, model="deit",
    ),
    "plot": Case(
        "how the page looks (`report.title`)", setting("report.title", "Another title"),
        {"report": 1}, frozenset({"report"}),
    ),
    "batch": Case(
        "`contributions.batch_size`", setting("contributions.batch_size", 7),
        {}, frozenset({"report"}),
    ),
    "dtype": Case(
        "`contributions.dtype`", setting("contributions.dtype", "float16"),
        {"contributions": 6, "contributions_store": 4, "image_features": 0},
    ),
    "comment": Case(
        "a comment in every script and module", edited_code("*.py", "\n# a comment\n"),
        {}, frozenset(),
    ),
    "function": Case(
        "a function of the library (code is no reason to run; `STAGE_VERSIONS` is)",
        edited_code("pipeline_lib/estimate.py", "\n\ndef human(size):\n    return str(size)\n"),
        {}, frozenset(),
    ),
    "version": Case(
        "`STAGE_VERSIONS[\"contributions\"]` (the code of a stage changed its results)",
        raised("contributions"),
        {"bases": 2, "contributions": 6, "contributions_store": 4, "image_features": 0},
    ),
    "touch": Case("images touched", touched, {}, frozenset({"manifest"})),
    "copy": Case(
        "all files copied without their times", copied_without_times, {},
    ),
    "moved": Case("a weights file moved", model_folder(False), {}, frozenset({"report"})),
    "weights": Case(
        "a weights file replaced", model_folder(True),
        {"bases": 1, "contributions": 3, "contributions_store": 2, "maps": 1}, model="deit",
    ),
}  # fmt: skip


def jobs_after(run: Path, case: Case) -> Counter[tuple[str, str]]:
    """Jobs that would run after a change to a copy of a finished run."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        shutil.copytree(run, folder, copy_function=shutil.copy2)
        with case.change(folder) as snakefile:
            return plan(folder, snakefile=snakefile)


def main() -> None:
    run = Path(sys.argv[1]).resolve()
    print("| change | jobs that run again |\n|---|---|")
    for case in CASES.values():
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(sys.stderr):
            counts = Counter(rule for rule, _ in jobs_after(run, case).elements())
        listed = ", ".join(f"`{rule}` {n}" for rule, n in sorted(counts.items())) or "none"
        print(f"| {case.what} | {listed} |", flush=True)


if __name__ == "__main__":
    main()
