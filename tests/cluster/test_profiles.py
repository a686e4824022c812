"""The profiles: each plans the whole demo, and gives jobs what its machine has."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import ROOT


def dry_run(folder: Path, profile: str, *more: str) -> str:
    """What `snakemake --dry-run` says through a profile when all dumps are to be made again."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--forcerun", "contributions"]
    command += ["--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml"]
    command += ["--directory", str(folder), "--profile", str(ROOT / "profiles" / profile), *more]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def jobs(output: str, rule: str) -> list[str]:
    """What is said of each job of a rule."""
    return re.findall(rf"^(?:local)?rule {rule}:\n((?:    .*\n)+)", output, re.MULTILINE)


@pytest.fixture(scope="module")
def run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profiles") / "run"
    shutil.copytree(finished, folder, copy_function=shutil.copy2)
    return folder


@pytest.mark.parametrize("profile", ["gpus", "slurm"])
def test_the_same_things_make_jobs_run_again_through_all_profiles(profile: str) -> None:
    one, other = (
        yaml.safe_load((ROOT / "profiles" / name / "config.yaml").read_text("utf-8"))
        for name in ("default", profile)
    )
    for key in ("rerun-triggers", "max-checksum-file-size", "rerun-incomplete"):
        assert one[key] == other[key], key


def test_a_table_of_a_large_shard_is_compared_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "shard.parquet").write_bytes(bytes(3_000_000))
    rule = (
        'rule dump:\n    input: "shard.parquet"\n    output: "dump"\n    shell: "touch {output}"\n'
    )
    (tmp_path / "Snakefile").write_text(rule)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--directory", str(tmp_path)]
    command += ["--snakefile", str(tmp_path / "Snakefile")]
    command += ["--profile", str(ROOT / "profiles" / "default")]
    again = []
    for content in (bytes(3_000_000), bytes(3_000_000), b"1" + bytes(2_999_999)):
        (tmp_path / "shard.parquet").write_bytes(content)  # with another time
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        again.append("Nothing to be done" not in done.stdout + done.stderr)
    assert again == [True, False, True]


@pytest.mark.parametrize("profile", ["default", "gpus"])
def test_local_profiles_plan_the_demo(run: Path, profile: str) -> None:
    output = dry_run(run, profile)
    assert len(jobs(output, "contributions")) == 6
    assert len(jobs(output, "report")) == 1


def test_several_gpus_are_counted_on_the_command_line(run: Path) -> None:
    assert len(jobs(dry_run(run, "gpus", "--resources", "gpu=8"), "contributions")) == 6


def test_slurm_gives_models_a_gpu_and_groups_small_jobs(run: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_slurm", reason="pip install '.[cluster]'")
    output = dry_run(run, "slurm")
    dumps = jobs(output, "contributions")
    assert len(dumps) == 6
    for text in dumps:
        assert "gpu=1" in text
        assert "mem_mb=16000" in text and "runtime=240" in text
    (report,) = jobs(output, "report")
    assert "mem_mb=4000" in report and "runtime=60" in report
    assert jobs(output, "exactness") == []  # none alone:
    grouped = re.findall(r"^    rule exactness:\n((?:        .*\n)+)", output, re.MULTILINE)
    assert len(grouped) == 4
    assert all("runtime=10" in text for text in grouped)  # a group asks for the sum
