"""Faults: nothing is lost and nothing is wrong after any of them."""

from __future__ import annotations

import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running import ROOT, SMALL, changed, own_run, plan, rules_of, snakemake, write_config

from faults.killing import (
    STORE,
    TARGETS,
    content,
    dump_seconds,
    finish,
    interrupted,
    start,
    undumped,
)
from pipeline_lib.artifacts import read_table
from pipeline_lib.device import Halving
from pipeline_lib.dumps import open_dump
from pipeline_lib.errors import ArtifactError, ModelError
from pipeline_lib.gpu_claim import claim_gpu, visible_gpus
from pipeline_lib.models import read_weights

MANIFEST = Path("results/own/manifest/photos/images.parquet")


@pytest.fixture(scope="module")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete dump."""
    folder = own_run(tmp_path_factory.mktemp("faults") / "own")
    finish(folder)
    return folder


@pytest.fixture
def own(dumped: Path, tmp_path: Path) -> Path:
    """A copy of that folder."""
    shutil.copytree(dumped, tmp_path / "own", copy_function=shutil.copy2)
    return tmp_path / "own"


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_killed_run_resumes_to_the_same_bytes(dumped: Path, tmp_path: Path, target: str) -> None:
    """Two kills each; `python -m faults` makes as many as asked (docs/faults.md)."""
    shutil.copytree(dumped, tmp_path / "own", copy_function=shutil.copy2)
    fresh, moment, seconds = undumped(tmp_path / "own"), random.Random(target), dump_seconds(dumped)
    moments = [(passed, moment.uniform(0.0, seconds)) for passed in range(2)]
    result = interrupted(fresh, target, moments, content(dumped))
    assert result.kills
    assert (result.lost, result.wrong) == (0, 0)
    assert max(kill.repeated for kill in result.kills) <= 1


def test_two_runs_at_once_do_not_meet(own: Path, dumped: Path) -> None:
    """The second is told of the lock and changes nothing; tried three times during the first."""
    shutil.rmtree(own / "results")
    first = start(own)
    while not any((own / ".snakemake" / "locks").glob("*")):
        assert first.poll() is None
        time.sleep(0.02)
    for _ in range(3):
        second = snakemake(own, "dumps")
        assert first.poll() is None
        assert second.returncode != 0
        assert "lock" in (second.stdout + second.stderr).lower()
    assert first.wait() == 0
    assert content(own) == content(dumped)


@pytest.mark.parametrize("how", ["bit", "cut"])
def test_a_damaged_chunk_is_found_and_its_command_repairs_it(
    own: Path, dumped: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = own / STORE / "coordinates/c/1/0"
    damaged = bytearray(victim.read_bytes())
    if how == "bit":
        damaged[len(damaged) // 2] ^= 4
    else:
        damaged = damaged[: len(damaged) // 2]
    victim.write_bytes(bytes(damaged))
    monkeypatch.chdir(own)
    dump = open_dump(STORE, MANIFEST)
    with pytest.raises(ArtifactError, match=r"coordinates/c/1/0 .*shard 1\.") as error:
        dump.contributions(np.arange(dump.n))
    command = re.search(r"To repair it: (rm -f .*) && snakemake", str(error.value))
    assert command is not None
    subprocess.run(command.group(1), shell=True, check=True)
    again = plan(own, "dumps")
    assert [names for rule, names in again if rule == "contributions"] == ["vit photos 1"]
    finish(own)
    assert content(own) == content(dumped)


@pytest.mark.parametrize(
    "place", ["results", "results/own", "results/own/contributions", f"{STORE}/coordinates"]
)
def test_results_that_cannot_be_written_are_named_and_nothing_is_left(
    own: Path, dumped: Path, place: str
) -> None:
    """A file stands where a folder must be made: read-only for every user."""
    folder = own / place
    shutil.rmtree(folder)
    folder.write_text("")
    done = snakemake(own, "dumps")
    assert done.returncode != 0
    assert str(folder.relative_to(own)) in done.stdout + done.stderr
    folder.unlink()
    finish(own)
    assert content(own) == content(dumped)


@pytest.mark.parametrize("shift", [sign * 60**k for k in (1, 2, 3, 4) for sign in (-1, 1)])
def test_a_clock_that_is_off_dumps_nothing_again(own: Path, shift: int) -> None:
    """Inputs seem a minute to 150 days older or newer than what was made of them."""
    for folder in ("photos", "results/own/manifest"):
        for path in (own / folder).rglob("*"):
            if path.is_file():
                facts = path.stat()
                os.utime(path, (facts.st_atime + shift, facts.st_mtime + shift))
    assert not rules_of(plan(own, "dumps")) & {"contributions", "bases"}


def test_corrupt_images_among_good_ones_are_listed_and_left_out(tmp_path: Path) -> None:
    own = own_run(tmp_path / "own")
    good = (own / "photos/class1/1.png").read_bytes()
    data = good.index(b"IDAT") + 8
    bad = {
        "empty": b"",
        "header": b"\x89PNG\r\n",
        "half": good[: len(good) // 2],
        "text": b"no image",
        "zeros": bytes(len(good)),
        "bit": good[:data] + bytes([good[data] ^ 64]) + good[data + 1 :],
    }
    for name, made in bad.items():
        (own / f"photos/class1/{name}.png").write_bytes(made)
    assert "more than bad_share" in snakemake(own, str(MANIFEST)).stderr
    write_config(own, changed(SMALL, "datasets.photos.bad_share", 0.4))
    assert snakemake(own, "dumps").returncode == 0
    rejected = read_table("rejected", own / MANIFEST.with_name("rejected.parquet"))
    assert set(rejected["path"]) == {f"class1/{name}.png" for name in bad}
    assert len(read_table("manifest", own / MANIFEST)) == 10
    dump = open_dump(own / STORE, own / MANIFEST)
    assert dump.n == 10 and np.isfinite(dump.contributions(np.arange(10))).all()


def test_archives_and_links_cannot_reach_out_of_their_folder(tmp_path: Path) -> None:
    own = own_run(tmp_path / "own")
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (own / "photos/class0/link.png").symlink_to(tmp_path / "secret.png")
    write_config(own, changed(SMALL, "datasets.photos.bad_share", 0.2))
    assert snakemake(own, str(MANIFEST)).returncode == 0
    rejected = read_table("rejected", own / MANIFEST.with_name("rejected.parquet"))
    assert list(rejected["path"]) == ["class0/link.png"]
    assert "leads out of the data set's folder" in rejected["reason"][0]


# Processes and devices


@pytest.mark.parametrize(
    "how", ["time.sleep(600)", "while True: pass", "os.read(os.pipe()[0], 1)"]
)  # fmt: skip
def test_a_job_that_hangs_is_ended_and_says_where(tmp_path: Path, how: str) -> None:
    script = (
        "import os, sys, time\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from _job import end_if_hanging\n"
        f"def waits_for_ever():\n    {how}\n"
        "end_if_hanging(0.01, sys.argv[2])\nwaits_for_ever()"
    )
    log = tmp_path / "job.log"
    command = [sys.executable, "-c", script, str(ROOT / "workflow" / "scripts"), str(log)]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 1
    assert "Timeout" in log.read_text() and "waits_for_ever" in log.read_text()


@pytest.mark.parametrize(("room", "fits"), [(1, 1), (2, 1), (3, 3), (5, 3), (6, 6), (12, 6)])
def test_a_batch_that_does_not_fit_is_halved_and_the_result_is_the_same(
    caplog: pytest.LogCaptureFixture, room: int, fits: int
) -> None:
    """13 images at once; the memory has room for some, and 13 is halved to 6, 3 and 1."""
    sizes: list[int] = []

    def doubled(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        if len(images) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * images

    images = torch.arange(13.0).reshape(13, 1, 1, 1)
    run = Halving(doubled)
    parts = list(run(images))
    assert torch.equal(torch.cat([part for _, part in parts]), 2 * images)
    whole, rest = divmod(13, fits)
    assert [where.stop - where.start for where, _ in parts] == [fits] * whole + [rest] * (rest > 0)
    tried = [size for size in (13, 6, 3, 1) if size >= fits]
    assert sizes[: len(tried)] == tried
    assert "out of memory with 13 images; going on with 6" in caplog.text
    sizes.clear()
    assert len(list(run(images[:8]))) == -(-8 // fits)
    assert max(sizes) == fits  # what did not fit is not tried again


def test_an_image_that_does_not_fit_alone_is_an_error() -> None:
    def fails(images: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ModelError, match="one image alone does not fit"):
        list(Halving(fails)(torch.zeros(4, 3, 2, 2)))


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    yield monkeypatch


def test_jobs_beside_each_other_claim_different_gpus(
    visible: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Three processes and two GPUs: the third gets the one that is given up by a kill."""
    script = (
        "import sys, time; from pathlib import Path; from pipeline_lib.gpu_claim import claim_gpu\n"
        "print(claim_gpu(folder=Path(sys.argv[1]), wait=0.05), flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]

    def job() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    first, second = job(), job()
    got = [run.stdout.readline().strip() for run in (first, second)]  # type: ignore[union-attr]
    third = job()
    try:
        assert sorted(got) == ["0", "1"]
        first.kill()
        assert third.stdout.readline().strip() == got[0]  # type: ignore[union-attr]
    finally:
        for run in (first, second, third):
            run.kill()
            run.wait()


def test_one_gpu_or_none_needs_no_claim(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert claim_gpu(["0"], tmp_path) is None and claim_gpu([], tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus(tmp_path) == ["0", "2", "10"]


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["pickle", "checkpoint", "legacy"])
def test_weights_with_code_in_them_are_refused_and_not_run(tmp_path: Path, how: str) -> None:
    mark, weights = tmp_path / "ran", tmp_path / "weights.pt"
    content = {"head.weight": torch.zeros(1), "more": Malicious(mark)}
    if how == "pickle":
        weights.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, weights, _use_new_zipfile_serialization=how == "checkpoint")
    with pytest.raises(ModelError, match="cannot be read safely"):
        read_weights(weights)
    assert not mark.exists()
