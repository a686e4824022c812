"""Checks the shards of a dump and makes them a store (rule contributions_store)."""

import json
import logging
from pathlib import Path

from _job import job

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.contributions import gather_dump
from pipeline_lib.factors import load_factors
from pipeline_lib.provenance import context

with job(snakemake):
    facts = gather_dump(
        Path(snakemake.output.store).parent,
        [Path(record) for record in snakemake.input.records],
        Path(snakemake.input.manifest),
        snakemake.params.tolerance,
        load_factors(snakemake.input.bases),
    )
    made = {name: context()[name] for name in ("stage", "seed")}
    with atomic_path(snakemake.output.manifest) as beside:
        beside.write_text(json.dumps({**facts, **made}, indent=1, sort_keys=True))
    logging.info("%s", facts)
