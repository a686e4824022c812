"""Interrupted runs: a run killed at a moment, resumed, and compared with one left in peace."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from running import ROOT

STORE = Path("results/own/contributions/vit/photos.zarr")


#: What is killed: the job that runs; Snakemake with all it started; Snakemake alone.
TARGETS = ("job", "snakemake", "alone")


@dataclass(frozen=True)
class Kill:
    """What came of one interruption."""

    stage: str  # rule whose job was running
    repeated: int  # shards that were complete, and were dumped again by the next run


@dataclass(frozen=True)
class Round:
    """What came of a run that was killed and resumed several times."""

    kills: list[Kill]
    lost: int  # files lacking, at the end and in shards that were complete at a kill
    wrong: int  # files whose bytes differ, counted likewise


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


def unlock(folder: Path) -> None:
    """What the message of a locked folder says."""
    start(folder, "--unlock").wait()


def finish(folder: Path) -> None:
    """Run to the end, unlocking first."""
    unlock(folder)
    run = start(folder)
    if run.wait():
        output = (folder / "output.txt").read_text()
        raise AssertionError(f"the resumed run failed:\n{output[-4000:]}")


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


def jobs_of(pid: int, rule: str = r"\w+") -> list[int]:
    """Processes that run the script of a rule, or of any, below a process."""
    script = re.compile(rf"\.snakemake/scripts/\S+\.{rule}\.py")
    return [p for p in below(pid) if script.search(_command(p))]


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
    """Median time of the dump jobs of a run, as Snakemake measured it."""
    tables = (folder / "results/own/benchmarks/contributions").rglob("*.tsv")
    return statistics.median(
        float(path.read_text().splitlines()[1].split("\t")[0]) for path in tables
    )


def interrupted(
    folder: Path, target: str, moments: Sequence[tuple[int, float]], truth: dict[str, bytes]
) -> Round:
    """Kill a run at some moments, resume it each time and to its end, and compare with the truth.

    Parameters
    ----------
    target
        One of `TARGETS`. Where the job is killed Snakemake goes on with the next, and is resumed
        when it has ended.
    moments
        How many dump jobs are let pass, and seconds after the start of the next. There are fewer
        kills where all shards are complete before.
    """
    run, seen = start(folder), set[int]()
    struck: list[tuple[str, set[int], int]] = []  # rule, shards complete, number of the run
    dumped: list[set[int]] = []  # shards that each run dumped
    lost = wrong = 0
    for passed, seconds in moments:
        started = [_next_dump(run, seen) for _ in range(passed + 1)]
        if not all(started) or not _goes_on(run, seconds):
            break
        done, stage = complete_shards(folder), running_rule(run.pid)
        _strike(run, target)
        struck.append((stage, done, len(dumped)))
        if target != "job":
            run.wait()
            dumped.append(_dumped(folder))
            missing, other = _compared(content(folder), _of_shards(truth, done))
            lost, wrong = lost + missing, wrong + other
            unlock(folder)
            run = start(folder)
    run.wait()
    dumped.append(_dumped(folder))
    if run.returncode:
        finish(folder)
        dumped.append(_dumped(folder))
    missing, other = _compared(content(folder), truth)
    nothing = set[int]()
    kills = [
        Kill(stage, len(done & (dumped[number + 1 :] or [nothing])[0]))
        for stage, done, number in struck
    ]
    return Round(kills, lost + missing, wrong + other)


def _next_dump(run: subprocess.Popen[str], seen: set[int]) -> bool:
    """Wait until a dump job starts that was not there before; false where the run ends first."""
    while run.poll() is None:
        new = set(jobs_of(run.pid, "contributions")) - seen
        if new:
            seen |= new
            return True
        time.sleep(0.02)
    return False


def _goes_on(run: subprocess.Popen[str], seconds: float) -> bool:
    """Let a run go on for some time; false where it ends before."""
    try:
        run.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _strike(run: subprocess.Popen[str], target: str) -> None:
    victims = jobs_of(run.pid)
    if target != "job":
        victims = [run.pid] if target == "alone" else [run.pid, *below(run.pid)]
    for victim in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def _dumped(folder: Path) -> set[int]:
    """Shards whose dump jobs the last run started."""
    output = (folder / "output.txt").read_text()
    return {int(n) for n in re.findall(r"rule contributions:.*?shard=(\d+)", output, re.DOTALL)}


def _of_shards(truth: dict[str, bytes], shards: set[int]) -> dict[str, bytes]:
    """Files that the jobs of some shards write: `{array}/c/{shard}/…`, but for the bases."""
    places = {name: name.split("/") for name in truth}
    return {
        name: truth[name]
        for name, (array, *place) in places.items()
        if array != "bases" and place[:1] == ["c"] and int(place[1]) in shards
    }


def _compared(found: dict[str, bytes], truth: dict[str, bytes]) -> tuple[int, int]:
    """How many files are lacking, and how many differ."""
    wrong = sum(found[name] != truth[name] for name in truth if name in found)
    return len(set(truth) - set(found)), wrong
