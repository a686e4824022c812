"""Embeds the images of one shard with the reference CLIP (rule image_features)."""

import json
from pathlib import Path

from _job import job, load_run_model

from pipeline_lib.artifacts import atomic_path, read_table
from pipeline_lib.config import image_root
from pipeline_lib.image_features import embed_shard

with job(snakemake) as config:
    record = embed_shard(
        load_run_model(config.reference),
        read_table("shard", snakemake.input.shard),
        image_root(config, snakemake.wildcards.dataset),
        Path(snakemake.output.embeddings).parents[3],
        config.contributions,
        workers=snakemake.threads,
    )
    with atomic_path(snakemake.output.record) as beside:
        beside.write_text(json.dumps(record, indent=1))
