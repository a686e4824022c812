"""Summary of a run: for each stage its jobs, time, memory and the room of its files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from pipeline_lib.estimate import folder_bytes, human
from pipeline_lib.progress import duration
from pipeline_lib.report.collect import read_timings

#: Folders of a run that are no stage's.
_BESIDE = ("logs", "benchmarks")


def run_summary(root: Path) -> pd.DataFrame:
    """Table `summary` of the run in a folder of results, in the order in which stages began.

    Time and memory are those of each job's last run, from Snakemake's benchmarks.
    """
    jobs = read_timings(root / "benchmarks").groupby("stage", sort=False)
    timed = pd.DataFrame(
        {
            "jobs": jobs.size(),
            "seconds": jobs["seconds"].sum(),
            "longest": jobs["seconds"].max(),
            "memory": jobs["memory"].max() * 1e6,
        }
    )
    folders = {path.name: path for path in root.iterdir() if path.is_dir()}
    folders |= {path.name: path for path in root.glob("applications/*") if path.is_dir()}
    sizes = {
        name: folder_bytes(path)
        for name, path in folders.items()
        if name not in (*_BESIDE, "applications")
    }
    table = timed.join(pd.Series(sizes, name="bytes", dtype="int64"), how="outer")
    table = table.fillna({"jobs": 0, "seconds": 0.0, "longest": 0.0, "bytes": 0})
    table = table.astype({"jobs": "int64", "bytes": "int64"})
    began = {stage: _began(root, stage, folders.get(stage)) for stage in table.index}
    order = sorted(table.index, key=lambda stage: (began[stage], stage))
    return table.loc[order].rename_axis("stage").reset_index()


def summary_lines(table: pd.DataFrame) -> list[str]:
    """The summary for a terminal."""
    lines = ["jobs that have run for these results, in this run and earlier ones:"]
    lines += [f"{'stage':<16}{'jobs':>6}{'time':>14}{'longest':>14}{'memory':>10}{'size':>10}"]
    for row in table.itertuples():
        memory = "" if pd.isna(row.memory) else human(float(str(row.memory)))
        lines.append(
            f"{row.stage:<16}{row.jobs:>6}{duration(float(str(row.seconds))):>14}"
            f"{duration(float(str(row.longest))):>14}{memory:>10}{human(float(str(row.bytes))):>10}"
        )
    lines.append(
        f"{'all':<16}{table['jobs'].sum():>6}{duration(table['seconds'].sum()):>14}"
        f"{'':>14}{'':>10}{human(int(table['bytes'].sum())):>10}"
    )
    return lines


def _began(root: Path, stage: str, folder: Path | None) -> float:
    """When a stage's first file was made; a stage without files comes last."""
    times = [
        path.stat().st_mtime for path in (folder or root / "none").rglob("*") if path.is_file()
    ]
    return min(times, default=float("inf"))
