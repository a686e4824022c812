"""Running and planning the workflow in tests: the real command, and dry runs in this process."""

from __future__ import annotations

import contextlib
import copy
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from snakemake.api import SnakemakeApi
from snakemake.cli import parse_size_in_bytes
from snakemake.settings.enums import RerunTrigger
from snakemake.settings.types import (
    ConfigSettings,
    DAGSettings,
    OutputSettings,
    Quietness,
    ResourceSettings,
    StorageSettings,
    WorkflowSettings,
)

ROOT = Path(__file__).parents[1]
SNAKEFILE = ROOT / "Snakefile"

#: A tiny run of every stage.
TINY = yaml.safe_load((ROOT / "config" / "test.yaml").read_text("utf-8"))

PROFILE = yaml.safe_load((ROOT / "profiles/default/config.yaml").read_text("utf-8"))

#: What may run again in the default profile, and the size up to which content is compared.
TRIGGERS = PROFILE["rerun-triggers"]
COMPARED = parse_size_in_bytes(PROFILE["max-checksum-file-size"])

Jobs = Counter[tuple[str, str]]


def write_config(folder: Path, content: dict[str, Any]) -> Path:
    """Write a configuration whose resources are those of the project."""
    path = folder / "config.yaml"
    text = yaml.safe_dump(content, sort_keys=False)
    path.write_text(text.replace("resources/", "${project}/resources/"), "utf-8")
    return path


def snakemake(
    folder: Path, *targets: str, before: Callable[[], None] | None = None, **streams: Any
) -> subprocess.CompletedProcess[str]:
    """Run plain `snakemake` on `folder/config.yaml`, with `folder` as working folder.

    What it writes is captured, or goes to the `streams` stdout and stderr.
    """
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(SNAKEFILE)]
    command += ["--configfile", "config.yaml", "--directory", str(folder), "--cores", "2"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        [*command, *targets],
        cwd=folder,
        env=environment,
        preexec_fn=before,
        text=True,
        **(streams or {"capture_output": True}),
    )


def jobs_of(done: subprocess.CompletedProcess[str]) -> Counter[str]:
    """How many jobs of each rule a run of `snakemake` started; it must have ended well."""
    assert done.returncode == 0, done.stderr[-6000:]
    return Counter(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):$", done.stderr, re.MULTILINE))


def plan(
    folder: Path, *targets: str, snakefile: Path = SNAKEFILE, compared: int = COMPARED
) -> Jobs:
    """Jobs that would run now, as `(rule, wildcards)`, up to the next checkpoint.

    Files of more than `compared` bytes are judged by their times, others by their content.
    """
    quiet = OutputSettings(dryrun=True, quiet={Quietness.ALL})
    with contextlib.chdir(folder), SnakemakeApi(quiet) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(cores=2),
            config_settings=ConfigSettings(configfiles=[folder / "config.yaml"]),
            storage_settings=StorageSettings(),
            workflow_settings=WorkflowSettings(),
            snakefile=snakefile,
            workdir=folder,
        )
        triggers = frozenset(RerunTrigger.parse_choice(name) for name in TRIGGERS)
        settings = DAGSettings(
            targets=set(targets), rerun_triggers=triggers, max_checksum_file_size=compared
        )
        dag = workflow.dag(settings)
        dag.execute_workflow(executor="dryrun")
        jobs = workflow._workflow.dag.needrun_jobs(exclude_finished=False)
        return Counter(
            (job.rule.name, " ".join(map(str, job.wildcards))) for job in jobs if not job.rule.norun
        )


def rules_of(jobs: Iterable[tuple[str, str]]) -> set[str]:
    return {rule for rule, _ in jobs}


def changed(content: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """A copy with the value at a dotted place replaced."""
    content = copy.deepcopy(content)
    *sections, key = place.split(".")
    section = content
    for name in sections:
        section = section[name]
    section[key] = value
    return content


# Photographs of a user's own, in a small configuration


def photograph(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, size=(40, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


SMALL = yaml.safe_load((ROOT / "benchmarks" / "tiny.yaml").read_text("utf-8"))


def own_run(folder: Path, count: int = 10, shard_size: int = 4) -> Path:
    """A folder with some photographs and a configuration that dumps them (in three shards)."""
    for number in range(count):
        photograph(folder / "photos" / f"class{number % 2}" / f"{number}.png", number)
    write_config(folder, changed(SMALL, "contributions.shard_size", shard_size))
    return folder
