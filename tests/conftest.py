"""What tests of several files share: one finished run of every stage."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import pytest
from running import TINY, snakemake, write_config


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which config/test.yaml was run; never changed, so that all processes share it."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = base / "finished", base / "finished.done"
    with (base / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given up with the process
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            write_config(folder, TINY)
            run = snakemake(folder)
            assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]
            done.touch()
    return folder


@pytest.fixture(scope="module")
def tiny(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished run for one file of tests."""
    folder = tmp_path_factory.mktemp("tiny") / "copy"
    shutil.copytree(finished, folder, copy_function=shutil.copy2)
    return folder
