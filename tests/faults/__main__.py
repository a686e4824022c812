"""The table of interruptions: `PYTHONPATH=tests python -m faults [tries [minutes]]`.

Every try starts a run whose images are listed and whose bases are found, kills it at a random
moment of one of its three dump jobs, resumes it and compares all bytes with those of a run left in
peace. Prints a table in Markdown, for docs/faults.md.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from running import own_run

from faults.killing import Try, content, dump_seconds, finish, interrupt, undumped

TARGETS = ("job", "snakemake", "alone")


def tries(count: int, minutes: float, folder: Path) -> tuple[list[Try], float]:
    """Interruptions of dump jobs at random moments, and the seconds that such a job takes."""
    end = time.monotonic() + 60 * minutes
    peaceful = own_run(folder / "peaceful")
    finish(peaceful)
    truth, seconds = content(peaceful), dump_seconds(peaceful)
    base = folder / "base"
    shutil.copytree(peaceful, base, copy_function=shutil.copy2)
    undumped(base)
    moments = random.Random(0)
    found = []
    for number in range(count):
        if time.monotonic() > end:
            break
        place = folder / "try"
        shutil.copytree(base, place, copy_function=shutil.copy2)
        shard, when = moments.randrange(3), moments.uniform(0.0, 1.0) * seconds
        found.append(interrupt(place, TARGETS[number % len(TARGETS)], shard, when, truth))
        shutil.rmtree(place)
        print(f"{number + 1} of {count}: {found[-1]}", file=sys.stderr)
    return found, seconds


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 120.0
    with tempfile.TemporaryDirectory() as folder:
        found, seconds = tries(count, minutes, Path(folder))
    print(f"A dump job left in peace takes {seconds:.1f} s.\n")
    print("| killed | tries | of them in a dump job | whole shards repeated | files lost | wrong |")
    print("|---|---|---|---|---|---|")
    names = {"job": "the job", "snakemake": "Snakemake and its jobs", "alone": "Snakemake alone"}
    for target, name in names.items():
        mine = [one for one in found if one.target == target]
        in_dump = sum(one.stage == "contributions" for one in mine)
        most = max((one.repeated for one in mine), default=0)
        lost, wrong = sum(one.lost for one in mine), sum(one.wrong for one in mine)
        print(f"| {name} | {len(mine)} | {in_dump} | at most {most} | {lost} | {wrong} |")


if __name__ == "__main__":
    main()
