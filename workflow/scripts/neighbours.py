"""Finds components of different models that vary alike (rule neighbours)."""

from pathlib import Path

from _job import job

from pipeline_lib.artifacts import write_table
from pipeline_lib.dumps import open_dump
from pipeline_lib.report.cards import neighbours

with job(snakemake):
    stores = [
        Path(path).parent for path in snakemake.input.dumps if path.endswith(".zarr/zarr.json")
    ]
    dumps = {store.parent.name: open_dump(store, snakemake.input.manifest) for store in stores}
    table = neighbours(dumps).assign(dataset=snakemake.wildcards.dataset)
    write_table("neighbours", table, snakemake.output.table)
