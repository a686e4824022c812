"""What a run says of itself: the disk before it, progress while it goes on, a summary after it."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pytest
from running import SMALL, own_run, snakemake

from pipeline_lib import estimate, progress
from pipeline_lib.artifacts import read_table
from pipeline_lib.config import load_config
from pipeline_lib.errors import DiskError
from pipeline_lib.estimate import check_disk, dump_bytes, missing_bytes
from pipeline_lib.factors import Factors, load_factors, save_factors
from pipeline_lib.progress import Progress, duration


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder of a run of dumps, and what was printed."""
    folder = own_run(tmp_path_factory.mktemp("run"))
    done = snakemake(folder, "dumps")
    assert done.returncode == 0, done.stderr[-6000:]
    return folder, done.stdout


def test_a_run_ends_with_a_table_of_its_stages(run: tuple[Path, str]) -> None:
    folder, printed = run
    results = folder / "results/own"
    table = read_table("summary", results / "summary.parquet").set_index("stage")
    assert list(table.index) == ["manifest", "contributions"]
    assert list(table["jobs"]) == [1, 5]  # bases, three shards, the store
    timed = results.glob("benchmarks/**/*.tsv")
    seconds = [float(path.read_text().splitlines()[1].split("\t")[0]) for path in timed]
    assert table["seconds"].sum() == pytest.approx(sum(seconds))
    assert table["longest"].max() == pytest.approx(max(seconds))
    for stage in table.index:
        sizes = [path.stat().st_size for path in (results / stage).rglob("*") if path.is_file()]
        assert table["bytes"][stage] == sum(sizes)
    assert "jobs that have run for these results" in printed
    assert re.search(r"^manifest +1 ", printed, re.MULTILINE)
    assert re.search(r"^all +6 ", printed, re.MULTILINE)


def test_the_log_of_a_shard_says_where_and_how_fast(run: tuple[Path, str]) -> None:
    log = (run[0] / "results/own/logs/contributions/vit/photos/0.log").read_text()
    for said in ("device cpu", "computing in float32", "batch 4", "4 images, at most", "4 of 4"):
        assert said in log, said


def test_what_is_missing_is_counted_by_hand(
    run: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run[0]
    monkeypatch.chdir(folder)
    config = load_config(SMALL)
    assert missing_bytes(config) == {}
    record = folder / "results/own/contributions/vit/photos.shards/1.parquet"
    content = record.read_bytes()
    record.unlink()
    factors = load_factors("results/own/contributions/vit.bases.safetensors")
    needed = dump_bytes(4, factors, "float32", "factored")
    try:
        assert missing_bytes(config) == {"vit on photos": needed}
        monkeypatch.setattr(estimate, "free_bytes", lambda folder: needed)
        check_disk(config)
        monkeypatch.setattr(estimate, "free_bytes", lambda folder: needed - 1)
        with pytest.raises(DiskError, match=r"vit on photos: .*\n.*float16"):
            check_disk(config)
    finally:
        record.write_bytes(content)


def test_dumps_that_do_not_fit_stop_the_run_before_its_first_job(tmp_path: Path) -> None:
    own = own_run(tmp_path)
    bases = own / "results/own/contributions/vit.bases.safetensors"
    assert snakemake(own, str(bases.relative_to(own))).returncode == 0
    assert snakemake(own, "results/own/manifest/photos/images.parquet").returncode == 0
    save_factors(Factors((10**17,), 24, np.zeros((1, 24), dtype=np.float32)), bases, {})
    done = snakemake(own, "dumps")
    assert done.returncode != 0
    assert "need 4000.0 PB" in done.stdout + done.stderr
    assert not list(own.glob("results/own/logs/contributions"))


def test_progress_leaves_the_first_batch_out(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([100.0, 102.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with caplog.at_level(logging.INFO):
        shown = Progress(100, "cpu")
        for done in (10, 30, 60):
            shown.log(done)
    assert caplog.messages == [
        "10 of 100 images on cpu",
        "30 of 100 images on cpu, 10.0 images/s, 7.0 s left",
        "60 of 100 images on cpu, 5.0 images/s, 8.0 s left",
    ]


def test_durations_are_readable() -> None:
    spans = [duration(s) for s in (4.4, 9.96, 59.6, 75, 3 * 3600 + 120, float("inf"))]
    assert spans == ["4.4 s", "10 s", "1 min 0 s", "1 min 15 s", "3 h 2 min", "unknown"]
