"""Scores of all models held against the truths about their components (rule validation)."""

import pandas as pd
from _job import job

from pipeline_lib.artifacts import read_provenance, read_table, write_table
from pipeline_lib.validation import confirmed_table, validation_table

with job(snakemake):
    draws, seed = snakemake.params.draws, snakemake.params.seed
    tables, confirmed = [], []
    for scored, known in zip(snakemake.input.scores, snakemake.input.truths, strict=True):
        scores, truths = read_table("scores", scored), read_table("truth", known)
        names = {name: scores[name].iloc[0] for name in ("model", "dataset")}
        images = read_provenance(known)["images"]
        table = validation_table(scores, truths, images=images, draws=draws, seed=seed)
        tables.append(table.assign(**names))
        confirmed.append(confirmed_table(scores, truths).assign(**names))
    facts = {"draws": draws, "seed": seed}
    write_table("validation", pd.concat(tables), snakemake.output.table, facts)
    write_table("confirmed", pd.concat(confirmed), snakemake.output.confirmed, facts)
