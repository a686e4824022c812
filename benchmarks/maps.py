"""Time, memory and held-out cosine of fitting maps, beside the published recipe on the same data.

    python -m benchmarks.maps [--images 6400] [--width 768] [--method ridge …] [--published]
                              [--device cuda] [--docs docs/maps-speed.md | --add docs/maps-speed.md]

The contributions are planted (`benchmarks.contributions`): 60 heads of rank 64, 5 components with
all axes and one constant at the default size, 66 in all. The published recipe is Adam at 3e-4 on
batches of 32 images from random isometries, here run until its held-out cosine has not grown for
10 epochs, at most 300; at the default size that takes 25 minutes of two cores. Every method runs in
its own process, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
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
from pipeline_lib.config import Maps
from pipeline_lib.map_fits import Settings, fit_maps
from pipeline_lib.maps import split_heldout

#: The published recipe, to convergence.
PUBLISHED = Settings(batch_size=32, max_epochs=300, patience=10, initial="random")
INTRODUCTION = (
    "# Speed of fitting maps\n\n"
    "Planted contributions, read from disk; seconds are those of the whole fit, GB the peak of the "
    "process, cosine and recall those of images that nothing was fitted on. Epochs are 0 for "
    f"closed forms. The default of `maps.method` is `{Maps.model_fields['method'].default}`. "
    f"*published*: the published recipe (Adam at {PUBLISHED.learning_rate:g} on batches of "
    f"{PUBLISHED.batch_size} images, from random isometries), until its held-out cosine has not "
    f"grown for {PUBLISHED.patience} epochs, at most {PUBLISHED.max_epochs}.\n"
)
HEAD = (
    "method", "images", "components × width", "held-out cosine", "recall@1", "epochs", "seconds",
    "GB",
)  # fmt: skip


def planted(images: int, width: int) -> Planted:
    """60 heads of a twelfth of the width, 5 components of all axes, one of one."""
    return Planted(images, (width // 12,) * 60 + (width,) * 5 + (1,), width, width)


def measure(method: str, asked: argparse.Namespace) -> dict[str, object]:
    """One fit, in this process."""
    torch.set_num_threads(asked.threads)
    plan = planted(asked.images, asked.width)
    with tempfile.TemporaryDirectory() as folder:
        source = plan.write(Path(folder) / "contributions")
        targets = plan.targets()
        heldout = split_heldout([str(i) for i in range(asked.images)], 0.2, seed=0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        fit = fit_maps(
            source,
            targets,
            heldout,
            method="compalign" if method == "published" else method,  # type: ignore[arg-type]
            settings=PUBLISHED if method == "published" else Settings(),
            device=asked.device,
        )
        seconds = time.perf_counter() - started
    found = fit.metrics.query("split == 'heldout'").iloc[0]
    return {
        "method": method,
        "images": asked.images,
        "components × width": f"{len(plan.ranks)} × {asked.width}",
        "held-out cosine": round(float(found["cosine"]), 4),
        "recall@1": round(float(found["recall_at_1"]), 3),
        "seconds": round(seconds, 1),
        "GB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "GB before": round(before / 1e6, 2),
        "epochs": max(len(fit.history) - 1, 0),
    }


def section(rows: list[dict[str, object]], asked: argparse.Namespace) -> str:
    """The part of the page on one run."""
    lines = [
        f"## {rows[0]['images']} images, {rows[0]['components × width']}",
        "",
        f"Made on {date.today().isoformat()} by `python -m benchmarks.maps "
        f"{' '.join(sys.argv[1:])}` on {platform.machine()}, {asked.threads} threads, "
        f"device {asked.device}.",
        "",
        *markdown_rows(HEAD, rows),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Fit every method in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.maps", description=__doc__)
    parser.add_argument("--images", type=int, default=6400)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--method", nargs="+", default=["ridge", "anchored", "compalign"])
    parser.add_argument("--published", action="store_true", help="also the published recipe")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--docs", type=Path, help="page to write")
    parser.add_argument("--add", type=Path, help="page to add the run to")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one, asked)))
        return
    methods = [*asked.method, *(["published"] if asked.published else [])]
    rows = measured_apart("benchmarks.maps", methods)
    made = section(rows, asked)
    print(made)
    if asked.docs:
        asked.docs.write_text(f"{INTRODUCTION}\n{made}", "utf-8")
    if asked.add:
        asked.add.write_text(f"{asked.add.read_text('utf-8')}\n{made}", "utf-8")


if __name__ == "__main__":
    main()
