"""Time and memory of labelling components with texts, from the dump to the labels.

    python -m benchmarks.textspan [--images 6400] [--heads 144] [--texts 3500] [--count 20]
                                  [--method textspan …] [--docs docs/textspan-speed.md]

The contributions are planted (`benchmarks.contributions`): heads of rank 64 in a model of width
768, mapped to a CLIP space of 512 dimensions by one map each. The pool are random unit vectors of
that space, which is the hardest case: no text is ever exhausted. Every method runs in its own
process, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import resource
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from benchmarks.contributions import Planted
from benchmarks.isolated import markdown_rows, measured_apart
from pipeline_lib.coordinates import encode
from pipeline_lib.maps import Maps
from pipeline_lib.nonnegative import label_nonnegative
from pipeline_lib.scores import moments
from pipeline_lib.textspan import label_components, random_pool

WIDTH, RANK, SPACE = 768, 64, 512
HEAD = ("method", "heads", "texts", "texts a head", "images", "reading", "moments", "labels")


def measure(method: str, asked: argparse.Namespace) -> dict[str, object]:
    """Labels of all heads by one method, in this process."""
    torch.set_num_threads(asked.threads)
    plan = Planted(asked.images, (RANK,) * asked.heads, WIDTH, SPACE)
    maps = Maps(
        "random", plan._normal(7, asked.heads, WIDTH, SPACE) / WIDTH**0.5, torch.zeros(SPACE)
    )
    pool = random_pool(asked.texts, SPACE, seed=0).float()
    with tempfile.TemporaryDirectory() as folder:
        source = plan.write(Path(folder) / "contributions")
        times = [time.perf_counter()]
        encoded = encode(source)
        times.append(time.perf_counter())
        found = moments(encoded, maps)
        times.append(time.perf_counter())
        if method == "nonnegative":
            labels = label_nonnegative(encoded, found, pool, count=asked.count, min_gain=0.0)
        else:
            labels = label_components(found, pool, count=asked.count, method=method, min_gain=0.0)
        times.append(time.perf_counter())
    steps = [round(after - before, 1) for before, after in itertools.pairwise(times)]
    return {
        "method": method,
        "heads": asked.heads,
        "texts": asked.texts,
        "texts a head": sum(len(label.texts) for label in labels) / len(labels),
        "images": asked.images,
        "reading": steps[0],
        "moments": steps[1],
        "labels": steps[2],
        "seconds": round(times[-1] - times[0], 1),
        "GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def page(rows: list[dict[str, object]], asked: argparse.Namespace) -> str:
    """The table as a page."""
    head = (*HEAD, "seconds", "GB")
    lines = [
        "# Speed of text labels",
        "",
        f"Made on {date.today().isoformat()} by `python -m benchmarks.textspan "
        f"{' '.join(sys.argv[1:])}` on {platform.machine()}, {asked.threads} threads. Seconds from "
        "the dump on disk to the labels, and of its three steps (reading serves all further "
        "methods and pools); GB is the peak of the process.",
        "",
        *markdown_rows(head, rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Label with every method in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.textspan", description=__doc__)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--heads", type=int, default=144)
    parser.add_argument("--texts", type=int, default=3500)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument(
        "--method", nargs="+", default=["textspan", "omp", "nonnegative", "published"]
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked)))
        return
    rows = measured_apart("benchmarks.textspan", asked.method)
    print(page(rows, asked))
    if asked.docs:
        asked.docs.write_text(page(rows, asked), "utf-8")


if __name__ == "__main__":
    main()
