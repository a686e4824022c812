"""The notebooks run to their end on a finished tiny run, and none ships its outputs."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from running import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

#: The tiny run's names in place of the demo's and of a user's own.
STAND_INS = {
    "../results/demo": "../results/test",
    "results/mine": "results/test",
    "config/mine.yaml": "config.yaml",
    '"photos"': '"world"',
    '"swin"': '"clip-small"',
}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["own-images", "quick-look", "two-models"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_output_is_committed(path: Path) -> None:
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_on_a_finished_run_and_changes_nothing(
    path: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "results").symlink_to(finished / "results")
    shutil.copy(finished / "config.yaml", tmp_path)
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    before = {p: p.stat().st_mtime_ns for p in (finished / "results").rglob("*")}
    book = read(path)
    for cell in book.cells:
        for words, other in STAND_INS.items():
            cell.source = cell.source.replace(words, other)
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    resources = {"metadata": {"path": str(tmp_path / "notebooks")}}
    NotebookClient(book, timeout=120, kernel_name="python3", resources=resources).execute()
    shown = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert shown and not any(output.output_type == "error" for output in shown)
    assert {p: p.stat().st_mtime_ns for p in (finished / "results").rglob("*")} == before
