"""Dumps: how much of the rate of `decompose` alone a dump keeps, and how two workers scale.

    python -m benchmarks.dump [--model NAME] [--images N] [--size PIXELS] [--threads N] [--rounds N]
                              [--only rates|workers|overhead]

Made-up photographs on local disk are dumped (decoded, transformed, decomposed, encoded, compressed,
written) and, in turn, decomposed alone, from memory, in the same batches. Then one worker dumps two
shards, and two workers one each, every worker a process that is kept to one core; the clock starts
when all have loaded their model. At last the workflow dumps a tiny model's two and twelve shards of
one image, once: the difference is what a job costs beside its work, also as time of processors,
which other work beside it changes little. Every other comparison is of neighbours in time, and
medians over rounds are printed as tables in Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import yaml
from PIL import Image

if TYPE_CHECKING:
    from pipeline_lib.models import VisionModel


def photographs(folder: Path, count: int, size: int) -> pd.DataFrame:
    """JPEG files of blurred noise, which decode as photographs do; rows of table `shard`."""
    from pipeline_lib.manifest import file_hash

    rng = np.random.default_rng(0)
    names = [f"{number:05d}.jpg" for number in range(count)]
    for name in names:
        small = Image.fromarray(rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8))
        small.resize((size, size), Image.Resampling.BICUBIC).save(folder / name, quality=90)
    return pd.DataFrame(
        {
            "row": range(count),
            "path": names,
            "active": True,
            "sha256": [file_hash(folder / name) for name in names],
        }
    )


def load(name: str) -> VisionModel:
    import torch

    from pipeline_lib.models import load_model

    torch.manual_seed(0)
    return load_model(f"timm:{name}", pretrained=False)


def rates(asked: argparse.Namespace, folder: Path) -> list[str]:
    """Rates of dumping and of decomposing alone, in turn."""
    import torch

    from pipeline_lib.config import Contributions
    from pipeline_lib.contributions import dump_shard
    from pipeline_lib.decomposition import decompose
    from pipeline_lib.device import compute_device
    from pipeline_lib.encoder import model_factors
    from pipeline_lib.images import read_image

    torch.set_num_threads(asked.threads)
    rows = photographs(folder, asked.images, asked.size)
    settings = Contributions(datasets=["x"], shard_size=len(rows), batch_size=asked.batch)
    model = load(asked.model)
    factors = model_factors(model, settings)
    device = compute_device()
    model.to(device)
    images = torch.stack([model.preprocess(read_image(folder / name)) for name in rows["path"]])
    batches = images.to(device).split(asked.batch)

    def alone() -> float:
        began = time.perf_counter()
        for batch in batches:
            decompose(model, batch).error.cpu()
        return len(rows) / (time.perf_counter() - began)

    def dumping(number: int) -> float:
        began = time.perf_counter()
        store = folder / f"{number}.zarr"
        dump_shard(model, rows, folder, store, settings, factors, workers=asked.threads)
        return len(rows) / (time.perf_counter() - began)

    alone(), dumping(-1)  # plans
    pairs = [(dumping(number), alone()) for number in range(asked.rounds)]
    dumped, own = (statistics.median(column) for column in zip(*pairs, strict=True))
    share = statistics.median(one / other for one, other in pairs)
    where = f"{asked.model}, {asked.threads} threads, batch {asked.batch}, on {device}"
    head = ["| | dump, images/s | decompose alone, images/s | share kept |", "|---|---|---|---|"]
    return [*head, f"| {where} | {dumped:.1f} | {own:.1f} | {share:.2f} |"]


def workers(asked: argparse.Namespace, folder: Path) -> list[str]:
    """Time of one worker for two shards, and of two workers for one each."""
    rows = photographs(folder, asked.images, asked.size)
    rows.to_parquet(folder / "rows.parquet")
    times = {count: [] for count in (1, 2)}
    for number in range(asked.rounds):
        for count in times:
            times[count].append(_workers(asked, folder, count, number))
    one, two = (statistics.median(times[count]) for count in times)
    ratio = statistics.median(a / b / 2 for a, b in zip(times[1], times[2], strict=True))
    head = ["| one worker, two shards | two workers, one each | of perfect scaling |"]
    return [*head, "|---|---|---|", f"| {one:.1f} s | {two:.1f} s | {ratio:.2f} |"]


def overhead(asked: argparse.Namespace, folder: Path) -> list[str]:
    """Seconds of a dump job of one image with a tiny model, one job at a time: all is overhead."""
    times = {count: _tiny_dumps(folder / f"jobs-{count}", count) for count in (2, 12)}
    pairs = zip(("wall time", "time of processors"), times[2], times[12], strict=True)
    rows = [f"| {name} | {a:.1f} s | {b:.1f} s | {(b - a) / 10:.1f} |" for name, a, b in pairs]
    return ["| | two jobs | twelve jobs | seconds a job |", "|---|---|---|---|", *rows]


def _tiny_dumps(place: Path, count: int) -> tuple[float, float]:
    """Wall time and time of processors of a run of some dump jobs."""
    (place / "photos" / "class").mkdir(parents=True)
    photographs(place / "photos" / "class", count, 32)
    tiny = yaml.safe_load((Path(__file__).parent / "tiny.yaml").read_text("utf-8"))
    tiny["contributions"]["shard_size"] = 1
    (place / "config.yaml").write_text(yaml.safe_dump(tiny))
    _snakemake(place, "results/own/contributions/vit.bases.json")
    _snakemake(place, "results/own/manifest/photos/images.parquet")
    began, spent = time.perf_counter(), _spent()
    _snakemake(place, "dumps")
    return time.perf_counter() - began, _spent() - spent


def _spent() -> float:
    """Seconds of processors that ended children took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _snakemake(folder: Path, target: str) -> None:
    command = [sys.executable, "-m", "snakemake", target, "--cores", "1", "--quiet", "all"]
    command += ["--snakefile", str(Path(__file__).parents[1] / "Snakefile")]
    command += ["--configfile", str(folder / "config.yaml"), "--directory", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _workers(asked: argparse.Namespace, folder: Path, count: int, number: int) -> float:
    """Seconds from the start of all workers to the end of the last."""
    go = folder / f"go-{count}-{number}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.dump", "--model", asked.model]
    command += ["--batch", str(asked.batch), "--images", str(asked.images)]
    processes = []
    for worker in range(count):
        shards = "0,1" if count == 1 else str(worker)
        more = ["--worker", shards, "--core", str(worker), "--folder", str(folder), "--go", str(go)]
        processes.append(
            subprocess.Popen([*command, *more], env=environment, stdout=subprocess.PIPE, text=True)
        )
    for process in processes:
        assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    began = time.perf_counter()
    go.touch()
    if any(process.wait() for process in processes):
        raise SystemExit("a worker failed")
    return time.perf_counter() - began


def work(asked: argparse.Namespace) -> None:
    """One worker: its shards, each half of the images."""
    import torch

    from pipeline_lib.config import Contributions
    from pipeline_lib.contributions import dump_shard
    from pipeline_lib.encoder import model_factors

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {int(asked.core)})  # else one worker alone would decode on another
    folder = Path(asked.folder)
    rows = pd.read_parquet(folder / "rows.parquet")
    size = len(rows) // 2
    settings = Contributions(datasets=["x"], shard_size=size, batch_size=asked.batch)
    model = load(asked.model)
    factors = model_factors(model, settings)
    dump_shard(model, rows[:size], folder, folder / f"warm{os.getpid()}.zarr", settings, factors)
    print("ready", flush=True)
    while not Path(asked.go).exists():
        time.sleep(0.005)
    for shard in map(int, asked.worker.split(",")):
        part = rows[shard * size : (shard + 1) * size].reset_index(drop=True)
        store = folder / "scaling.zarr"
        dump_shard(model, part, folder, store, settings, factors, workers=1)


PARTS = {"rates": rates, "workers": workers, "overhead": overhead}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=500, help="pixels of a side")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=PARTS, help="one part of it")
    for name in ("--worker", "--core", "--folder", "--go"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        return work(asked)
    sizes = f", {asked.images} images of {asked.size}×{asked.size} pixels, median of {asked.rounds}"
    print(f"{date.today():%d %B %Y}, {platform.processor() or platform.machine()}, "
          f"{os.cpu_count()} cores{'' if asked.only == 'overhead' else sizes}")  # fmt: skip
    for part in PARTS if asked.only is None else [asked.only]:
        with tempfile.TemporaryDirectory() as place:
            print("\n" + "\n".join(PARTS[part](asked, Path(place))), flush=True)


if __name__ == "__main__":
    main()
