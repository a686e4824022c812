"""The page docs/validation.md from the tables of a run (rule validation_page)."""

import os
import platform
from datetime import date
from pathlib import Path

import pandas as pd
from _job import job

from pipeline_lib.artifacts import read_table
from pipeline_lib.validation_page import validation_page

with job(snakemake) as config:
    tables = {
        name: pd.concat([read_table(name, path) for path in paths], ignore_index=True)
        for name, paths in snakemake.params.tables.items()
        if paths
    }
    made = {
        "command": "snakemake validation_page",
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "run": config.run,
    }
    Path(snakemake.output.page).write_text(validation_page(tables, made), "utf-8")
