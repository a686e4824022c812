"""Adds up the moments of all shards of a data set (rule gather_moments)."""

import json
import logging
from pathlib import Path

from _job import job

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.factors import load_factors
from pipeline_lib.moment_dumps import gather_moments
from pipeline_lib.provenance import context

with job(snakemake):
    facts = gather_moments(
        [Path(path) for path in snakemake.input.shards],
        [Path(path) for path in snakemake.input.records],
        Path(snakemake.input.manifest),
        snakemake.params.tolerance,
        load_factors(snakemake.input.bases),
        Path(snakemake.output.moments),
        Path(snakemake.output.components),
    )
    made = {name: context()[name] for name in ("stage", "seed")}
    with atomic_path(snakemake.output.manifest) as beside:
        beside.write_text(json.dumps({**facts, **made}, indent=1, sort_keys=True))
    logging.info("%s", facts)
