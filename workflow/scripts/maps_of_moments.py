"""Linear maps of one model to its CLIP space, fitted from moments (rule maps_of_moments)."""

import dataclasses
import json
from pathlib import Path

from _job import job

from pipeline_lib.artifacts import TABLES, write_table
from pipeline_lib.factors import load_factors
from pipeline_lib.map_moments import fit_from_moments
from pipeline_lib.maps import known_values, save_maps
from pipeline_lib.streamed import load_moments

with job(snakemake):
    model, asked = snakemake.wildcards.model, snakemake.params
    groups = load_moments(snakemake.input.moments)
    fit = fit_from_moments(groups["fit"], groups["heldout"], load_factors(snakemake.input.bases))
    facts = {
        "model": model,
        "weights": json.loads(Path(snakemake.input.facts).read_text("utf-8"))["weight_hash"],
        "dataset": asked.dataset,
        "settings": {"method": "ridge", "target": "image", "heldout": asked.heldout},
        "seed": asked.seed,
        "images": groups["fit"].n,
        "metrics": known_values(fit.metrics),
        **fit.maps.facts,
    }
    maps = dataclasses.replace(fit.maps, facts=facts)
    save_maps(maps, snakemake.output.weights, snakemake.output.manifest)
    columns = [column.name for column in TABLES["map_metrics"].columns]
    metrics = fit.metrics.assign(model=model, dataset=asked.dataset).reindex(columns=columns)
    provenance = {"settings": facts["settings"], **fit.maps.facts}
    write_table("map_metrics", metrics, snakemake.output.metrics, provenance)
