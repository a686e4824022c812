"""A real Slurm on this machine: the profile works, a node dies, and results are the local ones."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import ROOT, own_run, snakemake
from slurm_daemons import Slurm, reason_against, wait_for

REASON = reason_against()

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def on_slurm(slurm: Slurm, folder: Path, *targets: str) -> subprocess.Popen[str]:
    """The workflow through the profile; only what a machine of two cores lacks is changed."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--configfile", "config.yaml", "--directory", str(folder)]
    command += ["--profile", str(ROOT / "profiles" / "slurm"), "--latency-wait", "10"]
    command += ["--slurm-init-seconds-before-status-checks", "3"]
    command += ["--set-resources", "contributions:mem_mb=1500", "contributions:gpu=0"]
    command += ["--set-threads", "contributions=1"]
    path = f"{Path(sys.executable).parent}:{slurm.environment['PATH']}"
    return subprocess.Popen(
        [*command[:3], *targets, *command[3:]],
        cwd=folder,
        env={**slurm.environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def objects(folder: Path) -> dict[str, bytes]:
    """The numbers of a dump: every file of its store."""
    store = folder / "results" / "own" / "contributions" / "vit" / "photos.zarr"
    files = (path for path in store.rglob("*") if path.is_file())
    return {str(path.relative_to(store)): path.read_bytes() for path in files}


def test_a_node_dies_and_the_dump_equals_the_local_one(slurm: Slurm, tmp_path: Path) -> None:
    local, remote = own_run(tmp_path / "local"), own_run(tmp_path / "remote")
    done = snakemake(local, "dumps")
    assert done.returncode == 0, done.stderr[-3000:]

    run = on_slurm(slurm, remote, "dumps")
    victims: list[str] = []

    def strike() -> None:
        """Kill the node of the first dump that runs."""
        deadline = time.monotonic() + 600
        while run.poll() is None and time.monotonic() < deadline:
            jobs = slurm.call("squeue", "-h", "-t", "R", "-o", "%N %k", check=False).stdout
            nodes = [line.split()[0] for line in jobs.splitlines() if "contributions" in line]
            if nodes and not victims:
                slurm.kill_node(nodes[0])
                victims.append(nodes[0])
            if slurm.restarts():
                slurm.start_requeued()
            time.sleep(0.2)

    killer = threading.Thread(target=strike)
    killer.start()
    output, _ = run.communicate(timeout=900)
    killer.join()
    assert run.returncode == 0, output[-4000:]
    assert victims, "no dump was running when the node was to be killed"
    wait_for(lambda: slurm.restarts() > 0, 5, "a job that is queued again")
    assert objects(remote) == objects(local)
