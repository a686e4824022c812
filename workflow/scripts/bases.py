"""Bases in which one model's contributions are stored, from its weights (rule bases)."""

import json

from _job import job, load_run_model

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.encoder import model_factors
from pipeline_lib.factors import save_factors

with job(snakemake) as config:
    model = load_run_model(config.models[snakemake.wildcards.model])
    factors = model_factors(model, config.contributions)
    facts = {"model": model.id, "weight_hash": model.weight_hash, "digest": factors.digest}
    save_factors(factors, snakemake.output.bases, facts)
    with atomic_path(snakemake.output.facts) as beside:
        beside.write_text(json.dumps({**facts, "ranks": factors.ranks}, indent=1))
