"""The page docs/validation.md from the tables of a run (rule validation_page)."""

import json
import os
import platform
from datetime import date
from pathlib import Path

import pandas as pd
from _job import job

from pipeline_lib.artifacts import read_table
from pipeline_lib.config import local_folder
from pipeline_lib.training.save import METRICS
from pipeline_lib.validation_page import validation_page


def kinship(config):
    """A sentence on the models that were started from the weights of another, or ''."""
    started = {}
    for name, model in [*config.models.items(), ("the reference", config.reference)]:
        folder = local_folder(model.id) if model is not None and model.id else None
        card = folder / METRICS if folder else None
        if card is not None and card.exists():
            start = json.loads(card.read_text("utf-8"))["recipe"].get("start")
            started.setdefault(start, []).append(name)
    found = [
        f" {', '.join(names)} were started from the weights of {start} and trained on: what they "
        "have in common with it, and with each other, is one finding and not several."
        for start, names in started.items()
        if start
    ]
    return "".join(found)


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
        "method": config.scores.method,
        "kinship": kinship(config),
    }
    Path(snakemake.output.page).write_text(validation_page(tables, made), "utf-8")
