"""Dumps the contributions of one model for one shard of images (rule contributions)."""

from pathlib import Path

from _job import job, load_run_model

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import image_root
from pipeline_lib.contributions import dump_shard
from pipeline_lib.estimate import check_disk
from pipeline_lib.factors import load_factors

with job(snakemake) as config:
    check_disk(config)
    components, facts = dump_shard(
        load_run_model(config.models[snakemake.wildcards.model]),
        read_table("shard", snakemake.input.shard),
        image_root(config, snakemake.wildcards.dataset),
        Path(snakemake.output.coordinates).parents[3],
        config.contributions,
        load_factors(snakemake.input.bases),
        workers=snakemake.threads,
    )
    write_table("components", components, snakemake.output.record, facts)
