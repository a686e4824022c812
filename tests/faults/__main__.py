"""The table of interruptions: `PYTHONPATH=tests python -m faults [tries [minutes]]`.

Every try kills a run at a random moment, resumes it and compares all bytes with those of a run left
in peace. Prints a table in Markdown, for docs/faults.md.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from running import own_run

from faults.killing import Try, content, finish, interrupt

TARGETS = ("job", "snakemake", "alone")


def tries(count: int, minutes: float, folder: Path) -> tuple[list[Try], float]:
    """Interruptions at random moments, and the seconds of a run left in peace."""
    end = time.monotonic() + 60 * minutes
    base = own_run(folder / "base")
    peaceful = own_run(folder / "peaceful")
    began = time.monotonic()
    finish(peaceful)
    seconds = time.monotonic() - began
    truth = content(peaceful)
    moments = random.Random(0)
    found = []
    for number in range(count):
        if time.monotonic() > end:
            break
        place = folder / "try"
        shutil.copytree(base, place, copy_function=shutil.copy2)
        when = moments.uniform(0.05, 1.0) * seconds
        found.append(interrupt(place, TARGETS[number % len(TARGETS)], when, truth))
        shutil.rmtree(place)
        print(f"{number + 1} of {count}: {found[-1]}", file=sys.stderr)
    return found, seconds


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 21
    minutes = float(sys.argv[2]) if len(sys.argv) > 2 else 120.0
    with tempfile.TemporaryDirectory() as folder:
        found, seconds = tries(count, minutes, Path(folder))
    print(f"A run left in peace takes {seconds:.0f} s.\n")
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
