"""Writes the page from the tables of all stages (rule report)."""

import os
from datetime import UTC, datetime
from pathlib import Path

from _job import job

from pipeline_lib.report.collect import collect
from pipeline_lib.report.page import write_report
from pipeline_lib.report.provenance import run_facts

with job(snakemake) as config:
    newest = max(os.stat(path).st_mtime for path in snakemake.input.tables)
    created = datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%d %H:%M UTC")
    run = collect(config, {"created": created, **run_facts(config)})
    write_report(run, Path(snakemake.output.page).parent)
