"""Scores of all models held against the truths about their components (rule validation)."""

import pandas as pd
from _job import job

from pipeline_lib.artifacts import read_provenance, read_table, write_table
from pipeline_lib.validation import confirmed_table, validation_table

with job(snakemake):
    deals, seed, files = snakemake.params.deals, snakemake.params.seed, snakemake.input
    tables, confirmed = [], []
    for paths in zip(files.scores, files.truths, files.redraws, strict=True):
        kinds = ("scores", "truth", "redraws")
        found = [read_table(kind, path) for kind, path in zip(kinds, paths, strict=True)]
        names = {name: found[0][name].iloc[0] for name in ("model", "dataset")}
        images = read_provenance(paths[1])["images"]
        table = validation_table(*found, images=images, deals=deals, seed=seed)
        tables.append(table.assign(**names))
        confirmed.append(confirmed_table(*found).assign(**names))
    facts = {"deals": deals, "seed": seed}
    write_table("validation", pd.concat(tables), snakemake.output.table, facts)
    write_table("confirmed", pd.concat(confirmed), snakemake.output.confirmed, facts)
