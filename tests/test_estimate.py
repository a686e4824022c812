"""Estimates: by hand, and against a store that was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from running import TINY, changed, own_run, plan, rules_of, snakemake

from pipeline_lib.config import load_config
from pipeline_lib.estimate import (
    Machine,
    dump_bytes,
    estimate_dump,
    human,
    job_bytes,
    target_width,
)
from pipeline_lib.factors import Factors
from pipeline_lib.store import write_layout, write_shard


def vit_b() -> Factors:
    """ViT-B/16 per head: 144 heads of width 64, 12 MLPs and the stem whole, the bias on 2."""
    ranks = (768, *(64,) * 144, *(768,) * 12, 2)
    return Factors(ranks, 768, np.zeros((144 * 64 + 2, 768), dtype=np.float32))


def test_bytes_by_hand() -> None:
    factors = vit_b()
    beside = 4 * (768 + 2 + 1000)
    assert dump_bytes(10, factors, "float32", "full", classes=1000) == 10 * (158 * 768 * 4 + beside)
    columns = 768 + 144 * 64 + 12 * 768 + 2
    bases = 4 * (144 * 64 + 2) * 768
    assert (
        dump_bytes(10, factors, "float16", "factored", classes=1000)
        == 10 * (columns * 2 + beside) + bases
    )
    moments = [dump_bytes(n, factors, "float32", "moments", shards=64) for n in (10, 10**9)]
    assert set(moments) == {65 * 2 * 8 * (columns**2 + columns + 1) + bases}
    fitted = dump_bytes(10, factors, "float32", "moments", shards=64, targets=512)
    side = columns + 512
    assert fitted == 65 * 8 * (2 * (side**2 + side + 1) + columns**2 + columns + 1) + bases
    assert human(fitted) == "596.0 GB"  # docs/scale.md


def test_memory_of_a_job_by_hand() -> None:
    factors, columns = vit_b(), 768 + 144 * 64 + 12 * 768 + 2
    assert job_bytes(factors, 100, "factored") == 2 * 100 * columns * 4
    assert {job_bytes(factors, n, "moments") for n in (10, 10**9)} == {2 * 8 * columns**2}
    sums = 8 * (2 * (columns + 512) ** 2 + columns**2)
    assert job_bytes(factors, 10**6, "moments", 512) == sums + 4 * 512 * 10**6
    assert job_bytes(factors, 10**7, "moments", 512) == 3 * 4 * 512 * 10**7  # while it reads


def test_moments_that_maps_are_fitted_on_count_the_targets_in() -> None:
    content = changed(TINY, "contributions.level", "moments")
    content |= {"maps": {"dataset": "world", "method": "ridge"}, "applications": {}}
    config = load_config(content, check_files=False)
    pairs = [(model, dataset) for model in TINY["models"] for dataset in TINY["datasets"]]
    assert {pair: target_width(config, *pair, 512) for pair in pairs} == {
        pair: 512 if pair == ("deit", "world") else None for pair in pairs
    }
    content["maps"] |= {"given": "elsewhere"}
    given = load_config(content, check_files=False)
    assert {target_width(given, *pair, 512) for pair in pairs} == {None}


def test_a_vit_b_takes_a_fifth_of_the_room_from_some_thousand_images() -> None:
    full, factored = (
        dump_bytes(10_000, vit_b(), "float32", level) for level in ("full", "factored")
    )
    assert factored <= full / 5


def test_time_jobs_and_cost_by_hand() -> None:
    machine = Machine(rate=100.0, start=20.0, workers=4, price=3.0)
    table = estimate_dump(10_000, vit_b(), "float32", 1000, machine).set_index("level")
    work = 10_000 / 100 + 10 * 20  # seconds of one worker
    assert table.loc["factored", "jobs"] == 10
    assert table.loc["factored", "cost"] == pytest.approx(work / 3600 * 3)
    assert table.loc["factored", "hours"] == pytest.approx(work / 10 * 3 / 3600)  # 3 rounds of 4


def test_a_written_store_takes_what_was_estimated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    factors = Factors((40, 8, 8), 40, rng.normal(size=(16, 40)).astype("float32"))
    n, sizes = 500, {"n": 500, "d": 40, "r": 56, "b": 16}
    axes = {"coordinates": (n, 56), "representation": (n, 40), "error": (n,), "rounding": (n,)}
    arrays = {name: rng.normal(size=shape).astype("float32") for name, shape in axes.items()}
    write_shard(tmp_path, "contributions", 0, arrays, shard_size=500)
    write_layout(tmp_path, "contributions", sizes, shard_size=500, shared={"bases": factors.bases})
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert written == pytest.approx(dump_bytes(n, factors, "float32", "factored"), rel=0.15)


def test_sizes_are_readable() -> None:
    assert [human(size) for size in (12, 1.2e4, 3e15)] == ["12 B", "12.0 kB", "3.0 PB"]


def test_the_command_looks_at_images_and_models_and_dumps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_run(tmp_path)
    assert rules_of(plan(own, "estimate")) == {"manifest", "bases", "estimate"}
    monkeypatch.setenv("VIT_ATLAS_IMAGES", "1000000000000")
    monkeypatch.setenv("VIT_ATLAS_RATE", "1000")
    assert rules_of(plan(own, "estimate")) == {"bases", "estimate"}
    done = snakemake(own, "estimate")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "vit on photos: 1,000,000,000,000 images, 1000.0 images/s a worker" in done.stdout
    assert "\n* factored " in done.stdout and "\n  full " in done.stdout
    assert "250,000,000,000 jobs" in done.stdout and "NOT ENOUGH" in done.stdout
    assert not list(own.rglob("*.zarr"))
