"""Time and memory of ablation, retrieval and codes over a large synthetic dump.

    python -m benchmarks.applications [--images 50000] [--folder FOLDER] [--threads 2] [--keep]

The dump is written once, in the pipeline's own store: 144 heads of width 64 in bases of their own,
12 MLPs and a stem with all 768 numbers, normal random numbers. Each application runs in a process
of its own, from opening the dump to its tables, with the library functions its rule calls;
memory is the peak of that process. A warm file cache is as found after writing.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd

HEADS, HEAD_WIDTH, WHOLE, WIDTH, SPACE = 144, 64, 13, 768, 512
SHARD = 2560
FEATURES = ("shape", "colour", "texture", "scene", "size")
VALUES = 8
APPLICATIONS = ("ablation", "retrieval", "codes")


def make_components() -> pd.DataFrame:
    """Components of a plain model of 12 blocks of 12 heads, as table `components` has them."""
    rows = [("stem", "stem", -1, -1, -1, WIDTH)]
    for block in range(12):
        rows += [
            (f"blocks.{block}.attn/head{h}", "head", 2 * block, block, h, HEAD_WIDTH)
            for h in range(12)
        ]
        rows += [(f"blocks.{block}.mlp", "mlp", 2 * block + 1, block, -1, WIDTH)]
    table = pd.DataFrame(rows, columns=["id", "kind", "layer", "block", "head", "rank"])
    table.insert(0, "component", range(len(table)))
    return table.assign(stage=-1, module="", tokens=1)


def make_manifest(images: int) -> pd.DataFrame:
    """Manifest with random splits and five random factors."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"row": range(images)})
    table["image_id"] = [f"{i:06d}.png" for i in range(images)]
    table["split"] = rng.choice(["train", "val", "test"], images, p=[0.6, 0.2, 0.2])
    for name in FEATURES:
        table[name] = [f"{name} {value}" for value in rng.integers(0, VALUES, images)]
    for name in ("path", "sha256"):
        table[name] = table["image_id"]
    table["shard"] = table["row"] // SHARD
    blank = dict.fromkeys(("label", "group", "mask", "caption"))
    return table.assign(active=True, width=224, height=224, **blank)


def write_dump(folder: Path, images: int) -> None:
    """The synthetic dump and its manifest."""
    from pipeline_lib.artifacts import write_table
    from pipeline_lib.dumps import components_path
    from pipeline_lib.store import write_layout, write_shard

    rng, store = np.random.default_rng(1), folder / "model" / "images.zarr"
    components = make_components()
    ranks = components["rank"].to_numpy()
    bases = {
        c: np.linalg.qr(rng.normal(size=(WIDTH, HEAD_WIDTH)))[0].T.astype(np.float32)
        for c in np.flatnonzero(ranks < WIDTH)
    }
    summing = np.concatenate(
        [bases.get(c, np.eye(WIDTH, dtype=np.float32)) for c in range(len(ranks))]
    )
    for shard, start in enumerate(range(0, images, SHARD)):
        count = min(SHARD, images - start)
        coordinates = rng.standard_normal((count, int(ranks.sum())), dtype=np.float32)
        nothing = np.zeros(count, dtype=np.float32)
        arrays = {"coordinates": coordinates, "representation": coordinates @ summing}
        arrays |= {"error": nothing, "rounding": nothing}
        write_shard(store, "contributions", shard, arrays, shard_size=SHARD)
    stacked = np.concatenate(list(bases.values()))
    sizes = {"n": images, "r": int(ranks.sum()), "d": WIDTH, "b": len(stacked)}
    shared = {"bases": stacked}
    write_layout(store, "contributions", sizes, shard_size=SHARD, shared=shared)
    write_table("components", components, components_path(store))
    write_table("manifest", make_manifest(images), folder / "images.parquet")


def run_ablation(folder: Path) -> None:
    """Five targets with the classes of one linear head."""
    from pipeline_lib.ablation import ablation_table
    from pipeline_lib.classify import Head

    names = tuple(f"{feature} {value}" for feature in FEATURES for value in range(VALUES))
    weight = np.random.default_rng(2).normal(size=(len(names), WIDTH)).astype(np.float32)
    ablation_table(_dump(folder), FEATURES, head=Head(weight, None, names))


def run_retrieval(folder: Path) -> None:
    """By text and by image over all images, way and number chosen on 1,000 of split val."""
    from pipeline_lib.passes import images_of_split
    from pipeline_lib.retrieval import Asked, retrieve

    dump = _dump(folder)
    index = np.arange(dump.n)
    val = images_of_split(dump.manifest, "val")
    retrieve(dump, _maps(), _scores(), _texts(), index, val, Asked())


def run_codes(folder: Path) -> None:
    """All images as five of 2,000 texts, 24 of them with their carriers."""
    from pipeline_lib.codes import Dictionary, carriers, code_images

    dump, maps, dictionary = _dump(folder), _maps(), Dictionary.of(_texts())
    index = np.arange(dump.n)
    reference = np.sort(np.random.default_rng(0).permutation(dump.n)[:1000])
    codes, _ = code_images(dump, maps, dictionary, index, reference)
    carriers(dump, maps, dictionary, codes, index, reference[:256], range(24))


def _dump(folder: Path):  # type: ignore[no-untyped-def]
    from pipeline_lib.dumps import open_dump

    return open_dump(folder / "model" / "images.zarr", folder / "images.parquet")


def _maps():  # type: ignore[no-untyped-def]
    import torch

    from pipeline_lib.maps import Maps

    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(HEADS + WHOLE, WIDTH, SPACE, generator=generator) / WIDTH**0.5
    return Maps("compalign", weights, torch.zeros(SPACE))


def _scores() -> pd.DataFrame:
    rng, components = np.random.default_rng(4), make_components()
    tables = [
        components.assign(feature=name, score=rng.random(len(components))) for name in FEATURES
    ]
    return pd.concat(tables, ignore_index=True)


def _texts() -> pd.DataFrame:
    rng = np.random.default_rng(5)
    rows = [("concept", name, f"{name} {value}") for name in FEATURES for value in range(VALUES)]
    rows += [("pool", "word", f"word {i}") for i in range(2000)]
    vectors = rng.normal(size=(len(rows), SPACE)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    table = pd.DataFrame(rows, columns=["use", "feature", "text"])
    return table.assign(embedding=list(vectors))


def measure(name: str, folder: Path, threads: int) -> dict[str, object]:
    """Seconds and peak memory of one application in a process of its own."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, "-m", "benchmarks.applications", "--run", name]
    done = subprocess.run(
        [*command, "--folder", str(folder)], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr)
    return {"application": name, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    """Write the dump, run each application, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="where the dump is written, or lies already")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="leave the dump there")
    parser.add_argument("--only", nargs="+", choices=APPLICATIONS, default=APPLICATIONS)
    parser.add_argument("--run", choices=APPLICATIONS, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.run:
        began = time.perf_counter()
        {"ablation": run_ablation, "retrieval": run_retrieval, "codes": run_codes}[asked.run](
            asked.folder
        )
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        used = resource.getrusage(resource.RUSAGE_SELF)
        sys.stdout.write(
            json.dumps(
                {
                    "seconds": round(seconds, 1),
                    "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
                    "peak_gb": round(peak, 2),
                }
            )
            + "\n"
        )
        return
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="applications-"))
    if not (folder / "images.parquet").exists():
        write_dump(folder, asked.images)
    rows = [measure(name, folder, asked.threads) for name in asked.only]
    table = pd.DataFrame(rows).assign(images=asked.images, threads=asked.threads)
    sys.stdout.write(f"{date.today()}, {os.cpu_count()} cores\n{table.to_string(index=False)}\n")
    if not asked.keep and asked.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
