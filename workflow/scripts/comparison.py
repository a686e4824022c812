"""The models of a run side by side (rule comparison)."""

import pandas as pd
from _job import job

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.comparison import comparison_table

with job(snakemake):
    scores = pd.concat([read_table("scores", path) for path in snakemake.input.scores])
    columns = ["model", "dataset", "feature", "component", "score"]
    redrawn = [read_table("redraws", path, columns) for path in snakemake.input.redraws]
    table = comparison_table(scores, pd.concat(redrawn) if redrawn else None)
    write_table("comparison", table, snakemake.output.table)
