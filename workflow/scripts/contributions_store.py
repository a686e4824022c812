"""Checks the shards of a dump and makes them a store (rule contributions_store)."""

import logging
from pathlib import Path

from _job import job

from pipeline_lib.contributions import gather_dump

with job(snakemake):
    facts = gather_dump(
        Path(snakemake.output.store).parent,
        [Path(record) for record in snakemake.input.records],
        Path(snakemake.input.manifest),
        snakemake.params.tolerance,
    )
    logging.info("%s", facts)
