"""Prints time, disk, jobs and cost of all dumps (rule estimate); makes none."""

import resource
import time

from _job import job, load_run_model

from pipeline_lib.artifacts import read_table
from pipeline_lib.config import moment_fits
from pipeline_lib.contributions import decompose_rate
from pipeline_lib.estimate import (
    Machine,
    estimate_dump,
    free_bytes,
    human,
    job_bytes,
    target_width,
)
from pipeline_lib.factors import load_factors
from pipeline_lib.image_features import clip_width
from pipeline_lib.progress import duration

with job(snakemake) as config:
    asked = snakemake.params
    settings = config.contributions
    needed, largest, width = 0, 0, 0
    if moment_fits(config):
        width = clip_width(load_run_model(config.reference))
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
            known = settings.level == "projected"  # then its bases are those at hand
            targets = target_width(config, name, dataset, width)
            plan = estimate_dump(
                count, factors, settings.dtype, settings.shard_size, machine, classes=classes,
                targets=targets,
                **({"levels": ["projected"], "directions": None} if known else {}),
            )  # fmt: skip
            print(f"\n{name} on {dataset}: {count:,} images, {rate:.1f} images/s a worker, "
                  f"{asked.workers} workers")  # fmt: skip
            for row in plan.itertuples(index=False):
                mark = "*" if row.level == settings.level else " "
                print(f"{mark} {row.level:10} {human(row.bytes):>10}   {row.jobs:,} jobs   "
                      f"{duration(3600 * row.hours)}   cost {row.cost:,.2f}")  # fmt: skip
            needed += int(plan.set_index("level").loc[settings.level, "bytes"])
            size = job_bytes(factors, settings.shard_size, settings.level, targets)
            largest = max(largest, size)
    print(
        "\nlevels (* as configured; docs/scale.md): full keeps all numbers of an image, factored\n"
        "the same in bases of the components, projected products with texts and classes, moments\n"
        "means and covariances alone"
    )
    free = free_bytes(config.folder)
    verdict = "enough" if needed < free else "NOT ENOUGH"
    print(
        f"\ndisk as configured {human(needed)}; free in {config.folder}: {human(free)}: {verdict}"
    )
    if not asked.rate:  # models ran here
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"memory of one job at most about {human(peak + largest)}")
