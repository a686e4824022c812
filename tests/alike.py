"""Whether two runs of one configuration ended with the same results and the same report."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline_lib.artifacts import read_provenance
from pipeline_lib.config import load_config
from pipeline_lib.report.collect import Run, collect
from pipeline_lib.report.page import write_report

#: Columns and keys that hold times, or where and when something was made.
TIMES = {"seconds", "made", "device", "job"}

#: Files about the running, and the page, which is compared by itself.
APART = ("logs/", "benchmarks/", "report/index.html", "report/figures/", "summary.parquet")


def differences(one: Path, other: Path, scratch: Path) -> list[str]:
    """Files of two folders of runs (each with config.yaml and results/) that are not the same.

    Numbers, texts and pictures must be equal to the bit; times, and where and when something was
    made, are not looked at. The pages are made once more of both runs without these.
    """
    roots = [folder / load_config(folder / "config.yaml", check_files=False).folder
             for folder in (one, other)]  # fmt: skip
    names = [
        {
            path.relative_to(root).as_posix()
            for path in root.rglob("*")
            if path.is_file() and not path.relative_to(root).as_posix().startswith(APART)
        }
        for root in roots
    ]
    found = [f"{name} is in one run only" for name in sorted(names[0] ^ names[1])]
    found += [name for name in sorted(names[0] & names[1]) if not _same(*(r / name for r in roots))]
    pages = [_page(folder, scratch / side) for side, folder in (("one", one), ("other", other))]
    assert pages[0].keys() == pages[1].keys() and len(pages[0]) > 1
    return found + [f"report: {name}" for name in pages[0] if pages[0][name] != pages[1][name]]


def _same(one: Path, other: Path) -> bool:
    if one.suffix == ".json":
        return _without_times(json.loads(one.read_text())) == _without_times(
            json.loads(other.read_text())
        )
    if one.suffix == ".parquet":
        frames = [pd.read_parquet(path) for path in (one, other)]
        plain = [frame.drop(columns=list(TIMES & set(frame))) for frame in frames]
        facts = [_without_times(read_provenance(path)) for path in (one, other)]
        try:
            pd.testing.assert_frame_equal(*plain, check_exact=True)
        except AssertionError:
            return False
        return facts[0] == facts[1]
    return one.read_bytes() == other.read_bytes()


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _page(folder: Path, scratch: Path) -> dict[str, bytes]:
    """The report of a run and its figures, without times."""
    with contextlib.chdir(folder):
        config = load_config("config.yaml")
        assert (config.folder / "report" / "index.html").is_file()
        write_report(_timeless(collect(config)), scratch)
    paths = sorted(path for path in scratch.rglob("*") if path.is_file())
    return {path.relative_to(scratch).as_posix(): path.read_bytes() for path in paths}


def _timeless(run: Run) -> Run:
    tables = {
        name: table.assign(seconds=1.0) if "seconds" in table else table
        for name, table in run.tables.items()
    }
    facts = [_without_times(item) for item in run.provenance["facts"]]
    return replace(
        run,
        tables=tables,
        timings=run.timings.iloc[:0],
        provenance=run.provenance.assign(facts=facts),
    )
