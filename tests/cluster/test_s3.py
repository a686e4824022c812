"""Artifacts in an S3 bucket (a server on the loopback): another machine goes on from there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alike import differences
from running import own_run, plan, rules_of, snakemake
from slurm_daemons import wait_for

from pipeline_lib.errors import ArtifactError
from pipeline_lib.mirror import LISTING, open_bucket, pull, push

RUN = "results/own"


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """An S3 server with an empty bucket; gives the options that reach it."""
    boto3 = pytest.importorskip("boto3", reason="no boto3: pip install '.[cluster]'")
    pytest.importorskip("moto", reason="no moto: pip install '.[dev]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    options = {
        "endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1",
        "aws_access_key_id": "k", "aws_secret_access_key": "s",
    }  # fmt: skip
    try:
        wait_for(lambda: _answers(port), 120, "the S3 server")
        boto3.client("s3", **options).create_bucket(Bucket="atlas")
        yield options
    finally:
        run.terminate()
        run.wait()


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def files(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in (folder / RUN).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.cluster
def test_another_machine_goes_on_where_one_stopped(server: dict[str, str], tmp_path: Path) -> None:
    """The first dumps one shard of three, the second the rest; nothing is dumped twice."""
    first, bucket = own_run(tmp_path / "first"), open_bucket("s3://atlas/own", **server)
    store = f"{RUN}/contributions/vit/photos.zarr"
    done = snakemake(first, f"{store}/error/c/0")
    assert done.returncode == 0, done.stderr[-3000:]
    sent = push(first, bucket, RUN)
    assert f"{store}/coordinates/c/0/0" in sent
    assert push(first, bucket, RUN) == []

    second = tmp_path / "second"
    second.mkdir()
    shutil.copytree(first / "photos", second / "photos", copy_function=shutil.copy2)
    shutil.copy2(first / "config.yaml", second)
    assert set(pull(bucket, second)) == set(sent)
    again = sorted(names for rule, names in plan(second, "dumps") if rule == "contributions")
    assert again == ["vit photos 1", "vit photos 2"]
    assert snakemake(second, "dumps").returncode == 0
    push(second, bucket, RUN)

    pull(bucket, first)
    assert files(first) == files(second)
    assert not plan(first, "dumps")


#: Folders of the stages that follow the dumps.
LATER = ("maps", "scores", "validation", "comparison", "applications", "report")


@pytest.mark.cluster
@pytest.mark.slow
def test_another_machine_ends_the_demo_with_the_same_report(
    server: dict[str, str], finished: Path, tmp_path: Path
) -> None:
    """One machine has come as far as the dumps; another has nothing but the bucket."""
    first = tmp_path / "first"
    shutil.copytree(finished, first, copy_function=shutil.copy2)
    for name in LATER:
        shutil.rmtree(first / "results" / "test" / name)
    bucket = open_bucket("s3://atlas/demo", **server)
    assert push(first, bucket, "results/test")

    second = tmp_path / "second"
    second.mkdir()
    shutil.copy2(first / "config.yaml", second)
    pull(bucket, second)
    assert not rules_of(plan(second)) & {"world", "manifest", "bases", "contributions", "texts"}
    done = snakemake(second)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert differences(finished, second, tmp_path / "pages") == []


@pytest.fixture
def bucket(tmp_path: Path) -> tuple[Path, Path]:
    """A mirror in a folder: the same code over another file system."""
    own = tmp_path / "own"
    (own / RUN).mkdir(parents=True)
    (own / RUN / "a.txt").write_text("a")
    os.utime(own / RUN / "a.txt", ns=(10**18, 10**18))
    (tmp_path / "bucket").mkdir()
    push(own, open_bucket(str(tmp_path / "bucket")), RUN)
    return own, tmp_path / "bucket"


def test_files_come_back_with_their_times(bucket: tuple[Path, Path], tmp_path: Path) -> None:
    pull(open_bucket(str(bucket[1])), tmp_path / "new")
    copy = tmp_path / "new" / RUN / "a.txt"
    assert copy.read_text() == "a" and copy.stat().st_mtime_ns == 10**18


def test_a_damaged_file_of_the_bucket_is_refused(bucket: tuple[Path, Path], tmp_path: Path) -> None:
    (bucket[1] / RUN / "a.txt").write_text("b")
    with pytest.raises(ArtifactError, match="a.txt is damaged"):
        pull(open_bucket(str(bucket[1])), tmp_path / "new")
    assert not (tmp_path / "new" / RUN / "a.txt").exists()


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "results/../../x"])
def test_a_mirror_cannot_write_outside_its_folder(
    bucket: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    listing = json.loads((bucket[1] / LISTING).read_text())
    listing = {name: listing[f"{RUN}/a.txt"]}
    (bucket[1] / LISTING).write_text(json.dumps(listing))
    with pytest.raises(ArtifactError, match="leads out of"):
        pull(open_bucket(str(bucket[1])), tmp_path / "new")
    assert not (tmp_path / "outside.txt").exists()


def test_an_empty_bucket_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="holds no mirror"):
        pull(open_bucket(str(tmp_path / "empty")), tmp_path / "new")
