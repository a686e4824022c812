"""A real Slurm on this machine: a node dies during the demo, and its results are the local ones.

config/test.yaml; with VIT_ATLAS_WHOLE=1 the whole demo of config/demo.yaml (docs/cluster.md).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from alike import differences
from running import ROOT, snakemake, write_config
from slurm_daemons import Slurm, reason_against

REASON = reason_against()

WHOLE = os.environ.get("VIT_ATLAS_WHOLE") == "1"

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]

#: Rules that run a model: the profile asks for a GPU and for more memory than this machine has.
MODELS = ("contributions", "image_features", "maps", "heatmaps", "segmentation", "top_images")


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    cluster = Slurm(tmp_path / "slurm")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder in which the demo was run on this machine."""
    if not WHOLE:
        return request.getfixturevalue("finished")
    folder = tmp_path / "local"
    folder.mkdir()
    write_config(folder, yaml.safe_load((ROOT / "config/demo.yaml").read_text("utf-8")))
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def on_slurm(slurm: Slurm, folder: Path) -> subprocess.Popen[str]:
    """The workflow through the profile; only what a machine of two cores lacks is changed."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--configfile", "config.yaml", "--directory", str(folder)]
    command += ["--profile", str(ROOT / "profiles" / "slurm"), "--latency-wait", "10"]
    command += ["--slurm-init-seconds-before-status-checks", "3", "--jobs", "4"]
    command += ["--default-resources", "mem_mb=1500", "runtime=30"]
    command += ["--set-resources", *(f"{rule}:gpu=0" for rule in MODELS), "exactness:runtime=10"]
    command += ["--set-threads", "contributions=1", "image_features=1"]
    path = f"{Path(sys.executable).parent}:{slurm.environment['PATH']}"
    with (folder / "output.txt").open("w") as output:
        return subprocess.Popen(
            command, cwd=folder, env={**slurm.environment, "PATH": path}, text=True,
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def kill_a_node_that_dumps(slurm: Slurm, run: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """Wait for the end of a run, whose first dump job loses its node; gives node and its jobs."""
    victim, jobs = "", []
    while run.poll() is None:
        node = None if victim else slurm.node_that_runs("contributions")
        if node:
            time.sleep(3)  # well into the job
            jobs = slurm.running_on(node)
            if jobs:
                slurm.kill_node(node)
                victim = node
        if victim:
            slurm.start_requeued()
        time.sleep(0.5)
    return victim, jobs


def test_a_node_dies_and_the_demo_ends_as_the_local_one(
    slurm: Slurm, local: Path, tmp_path: Path
) -> None:
    remote = tmp_path / "remote"
    remote.mkdir()
    shutil.copy2(local / "config.yaml", remote)
    began = time.monotonic()
    run = on_slurm(slurm, remote)
    victim, jobs = kill_a_node_that_dumps(slurm, run)
    seconds = time.monotonic() - began
    output = (remote / "output.txt").read_text()
    assert run.returncode == 0, output[-6000:]
    assert victim, "no dump was running when the node was to be killed"
    assert slurm.restarts() == len(jobs) > 0
    found = differences(local, remote, tmp_path / "pages")
    print(
        f"{seconds:.0f} s, {slurm.submitted()} jobs; {victim} killed with {len(jobs)} jobs, "
        f"{slurm.restarts()} queued again; {len(found)} differences"
    )
    assert found == []
