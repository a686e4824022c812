"""The table of interruptions: `PYTHONPATH=tests python -m faults [tries [target …]]`.

Runs whose images are listed and whose bases are found are killed again and again, at random moments
of their dump jobs, and resumed; then all bytes are compared with those of a run left in peace.
Prints a table in Markdown, for docs/faults.md.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from pathlib import Path

from running import SMALL, changed, own_run, write_config

from faults.killing import (
    TARGETS,
    Round,
    content,
    dump_seconds,
    finish,
    interrupted,
    undumped,
)

#: Shards, and images of each: a job dumps about as long as it starts.
SHARDS, IMAGES = 4, 160

HEAD = """\
| killed | tries | of them in a dump job | whole shards repeated | files lost | wrong |
|---|---|---|---|---|---|"""

NAMES = {"job": "the job", "snakemake": "Snakemake and its jobs", "alone": "Snakemake alone"}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as place:
        peaceful = own_run(Path(place) / "peaceful", SHARDS * IMAGES, IMAGES)
        config = changed(SMALL, "contributions.shard_size", IMAGES)
        write_config(peaceful, changed(config, "models.vit.kwargs.depth", 4))
        finish(peaceful)
        truth, seconds = content(peaceful), dump_seconds(peaceful)
        undumped(peaceful)
        print(f"A dump job left in peace takes {seconds:.1f} s.\n")
        print(HEAD, flush=True)
        for target in sys.argv[2:] or TARGETS:
            rounds = killed(peaceful, target, count, seconds, truth)
            print(row(NAMES[target], rounds), flush=True)


def killed(
    base: Path, target: str, count: int, seconds: float, truth: dict[str, bytes]
) -> list[Round]:
    """Runs of copies of a folder, until as many kills are made as asked.

    No or one dump job is let pass; the moments are uniform over what one takes in peace.
    """
    moments, found = random.Random(target), list[Round]()
    while (made := sum(len(one.kills) for one in found)) < count:
        place = base.with_name(f"{target}-{len(found)}")
        shutil.copytree(base, place, copy_function=shutil.copy2)
        drawn = [(moments.randrange(2), moments.uniform(0.0, seconds)) for _ in range(count - made)]
        found.append(interrupted(place, target, drawn, truth))
        shutil.rmtree(place)
        print(f"{target}, after {made} kills: {found[-1]}", file=sys.stderr, flush=True)
    return found


def row(name: str, rounds: list[Round]) -> str:
    kills = [kill for one in rounds for kill in one.kills]
    in_dump = sum(kill.stage == "contributions" for kill in kills)
    most = max(kill.repeated for kill in kills)
    lost, wrong = sum(one.lost for one in rounds), sum(one.wrong for one in rounds)
    return f"| {name} | {len(kills)} | {in_dump} | at most {most} | {lost} | {wrong} |"


if __name__ == "__main__":
    main()
