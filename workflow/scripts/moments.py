"""Sums the moments of one model's contributions over one shard of images (rule moments)."""

from pathlib import Path

from _job import job, load_run_model

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import image_root
from pipeline_lib.estimate import check_disk
from pipeline_lib.factors import load_factors
from pipeline_lib.image_features import read_embeddings
from pipeline_lib.moment_dumps import sum_shard
from pipeline_lib.streamed import save_moments

with job(snakemake) as config:
    check_disk(config)
    rows = read_table("shard_splits", snakemake.input.shard)
    targets = [Path(path) for path in snakemake.input.targets]
    groups, components, facts = sum_shard(
        load_run_model(config.models[snakemake.wildcards.model]),
        rows,
        image_root(config, snakemake.wildcards.dataset),
        config.contributions,
        load_factors(snakemake.input.bases),
        targets=read_embeddings(*targets, rows) if targets else None,
        workers=snakemake.threads,
    )
    save_moments(groups, snakemake.output.moments)
    write_table("components", components, snakemake.output.record, facts)
