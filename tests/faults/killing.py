"""Interrupted runs: a run killed at a moment, resumed, and compared with one left in peace."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from running import ROOT

STORE = Path("results/own/contributions/vit/photos.zarr")


@dataclass(frozen=True)
class Try:
    """What came of one interruption."""

    target: str  # what was killed: snakemake, or the job that was running
    shard: int  # dump job in which it was meant to fall
    seconds: float  # when, after the start of that job
    stage: str  # rule that was running
    repeated: int  # dump jobs of shards that had been complete
    lost: int  # files that the resumed run lacks
    wrong: int  # files whose bytes differ


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Snakemake on the dumps of a folder, in a process group of its own."""
    command = [sys.executable, "-m", "snakemake", "dumps", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--configfile", "config.yaml", "--directory", str(folder), "--cores", "1"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (folder / "output.txt").open("w") as output:  # no pipe: an orphan would hold it open
        return subprocess.Popen(
            [*command, *more], cwd=folder, env={**os.environ, "PATH": path}, text=True,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def finish(folder: Path, *more: str) -> str:
    """Run to the end, unlocking first as the message of a locked folder says; gives the output."""
    start(folder, "--unlock").wait()
    run = start(folder, *more)
    run.wait()
    output = (folder / "output.txt").read_text()
    if run.returncode:
        raise AssertionError(f"the resumed run failed:\n{output[-4000:]}")
    return output


def content(folder: Path) -> dict[str, bytes]:
    """Every file of the dump by its name."""
    store = folder / STORE
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


def complete_shards(folder: Path) -> set[int]:
    """Shards whose job had ended well: their record is the last file that a job writes."""
    records = (folder / STORE).parent / "photos.shards"
    return {int(path.stem) for path in records.glob("*.parquet")}


def jobs_of(pid: int) -> list[int]:
    """Processes that run the script of a rule, below a process."""
    return [p for p in below(pid) if ".snakemake/scripts/" in _command(p)]


def below(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *below(child)]
    return found


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def running_rule(pid: int) -> str:
    """Rule whose script runs below a process; '' between jobs."""
    names = [re.search(r"\.(\w+)\.py", _command(p)) for p in jobs_of(pid)]
    return next((name.group(1) for name in names if name), "")


def undumped(folder: Path) -> Path:
    """A folder as it was before its first dump: images listed, bases found."""
    contributions = (folder / STORE).parent
    for path in contributions.glob("photos*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return folder


def dump_seconds(folder: Path) -> float:
    """Longest time of a dump job of a run, as Snakemake measured it."""
    tables = (folder / "results/own/benchmarks/contributions").rglob("*.tsv")
    return max(float(path.read_text().splitlines()[1].split("\t")[0]) for path in tables)


def interrupt(
    folder: Path, target: str, shard: int, seconds: float, truth: dict[str, bytes]
) -> Try:
    """Kill a run some seconds after a dump job has started, resume it, and compare with the truth.

    Parameters
    ----------
    target
        `snakemake`: it and all it started, as a power cut does; `alone`: only Snakemake itself, so
        that the job goes on as an orphan; `job`: only the job that runs.
    shard
        The dump job: how many are complete before it.
    """
    run = start(folder)
    while run.poll() is None:
        if running_rule(run.pid) == "contributions" and len(complete_shards(folder)) >= shard:
            break
        time.sleep(0.01)
    end = time.monotonic() + seconds
    while time.monotonic() < end and run.poll() is None:
        time.sleep(0.01)
    stage = running_rule(run.pid)
    done = complete_shards(folder)
    if target == "job":
        victims = jobs_of(run.pid)
    else:
        victims = [run.pid] if target == "alone" else [run.pid, *below(run.pid)]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    run.wait()
    output = finish(folder)
    again = {int(n) for n in re.findall(r"rule contributions:.*?shard=(\d+)", output, re.DOTALL)}
    found = content(folder)
    wrong = sum(found[name] != truth[name] for name in truth if name in found)
    lost = len(set(truth) - set(found))
    return Try(target, shard, round(seconds, 2), stage, len(done & again), lost, wrong)
