"""Prints time, disk, jobs and cost of all dumps (rule estimate); makes none."""

import shutil
import time
from pathlib import Path

from _job import job, load_run_model

from pipeline_lib.artifacts import read_table
from pipeline_lib.contributions import decompose_rate
from pipeline_lib.estimate import Machine, estimate_dump, human
from pipeline_lib.factors import load_factors

with job(snakemake) as config:
    asked = snakemake.params
    settings = config.contributions
    needed = 0
    for name, path in zip(config.models, snakemake.input.bases, strict=True):
        began = time.monotonic()
        model, factors = load_run_model(config.models[name]), load_factors(path)
        start = time.monotonic() - began + asked.start
        rate = asked.rate or decompose_rate(model, settings)
        classes = 0 if model.classifier is None else model.classifier.out_features
        machine = Machine(rate, start, asked.workers, asked.price)
        for dataset in settings.datasets:
            table = config.folder / "manifest" / dataset / "images.parquet"
            count = asked.images or int(read_table("manifest", table)["active"].sum())
            plan = estimate_dump(
                count, factors, settings.dtype, settings.shard_size, machine, classes=classes
            )
            print(f"\n{name} on {dataset}: {count:,} images, {rate:.1f} images/s a worker, "
                  f"{asked.workers} workers")  # fmt: skip
            for row in plan.itertuples(index=False):
                print(f"  {row.level:10} {human(row.bytes):>10}   {row.jobs:,} jobs   "
                      f"{row.hours:,.2f} h   cost {row.cost:,.2f}")  # fmt: skip
            kept = "factored" if settings.factored else "full"
            needed += int(plan.set_index("level").loc[kept, "bytes"])
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    verdict = "enough" if needed < free else "NOT ENOUGH"
    print(f"\nas configured {human(needed)}; free in {folder}: {human(free)}: {verdict}")
