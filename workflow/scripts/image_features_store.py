"""Checks the shards of image embeddings and makes them a store (rule image_features_store)."""

import json
from pathlib import Path

from _job import job

from pipeline_lib.image_features import gather_features

with job(snakemake):
    gather_features(
        Path(snakemake.output.store).parent,
        {Path(path): json.loads(Path(path).read_text()) for path in snakemake.input.records},
        Path(snakemake.input.manifest),
    )
