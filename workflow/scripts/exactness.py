"""Summarises how exactly a dump sums, and its size and time (rule exactness)."""

from _job import job, store_folder

from pipeline_lib.artifacts import read_provenance, write_table
from pipeline_lib.dumps import open_dump
from pipeline_lib.estimate import folder_bytes
from pipeline_lib.report.cards import exactness

with job(snakemake):
    store = store_folder(snakemake.input.dump)
    dump = open_dump(store, snakemake.input.manifest, projected=True)
    made = [read_provenance(record)["made"] for record in snakemake.input.records]
    table = exactness(
        dump,
        snakemake.params.tolerance,
        size=folder_bytes(store),
        seconds=sum(shard["seconds"] for shard in made),
    )
    names = {name: snakemake.wildcards[name] for name in ("model", "dataset")}
    facts = {"device": ", ".join(sorted({shard["device"] for shard in made}))}
    write_table("exactness", table.assign(**names), snakemake.output.table, facts)
