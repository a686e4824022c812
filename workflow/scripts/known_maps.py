"""Maps of one model that are known without its dump (rule known_maps)."""

import dataclasses
import json
from pathlib import Path

from _job import job

from pipeline_lib.factors import load_factors
from pipeline_lib.maps import identity_maps, load_maps, save_maps

with job(snakemake):
    model = json.loads(Path(snakemake.input.facts).read_text("utf-8"))
    maps = identity_maps(load_factors(snakemake.input.bases).width)
    if snakemake.input.given:
        maps = load_maps(*snakemake.input.given)
        maps.check_model(model["weight_hash"])
    facts = {"model": snakemake.wildcards.model, "weights": model["weight_hash"]}
    facts |= {"fitted": dict(maps.facts)} if snakemake.input.given else {}
    maps = dataclasses.replace(maps, facts=facts)
    save_maps(maps, snakemake.output.weights, snakemake.output.manifest)
