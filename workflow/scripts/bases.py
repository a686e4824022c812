"""Bases in which one model's contributions are stored, from its weights (rule bases)."""

import json

import numpy as np
import torch
from _job import job, load_run_model

from pipeline_lib.artifacts import atomic_path, read_table
from pipeline_lib.encoder import model_factors
from pipeline_lib.factors import save_factors
from pipeline_lib.maps import identity_maps, load_maps

with job(snakemake) as config:
    model = load_run_model(config.models[snakemake.wildcards.model])
    texts = maps = None
    if snakemake.input.texts:  # level projected
        table = read_table("text_features", snakemake.input.texts)
        asked = table[table["use"].isin(["concept", "class", "word"])]
        texts = torch.tensor(np.stack(asked["embedding"].to_list()), dtype=torch.float32)
        given = snakemake.input.maps
        maps = load_maps(*given) if given else identity_maps(texts.shape[1])
        if given:
            maps.check_model(model.weight_hash)
    factors = model_factors(model, config.contributions, texts, maps)
    facts = {"model": model.id, "weight_hash": model.weight_hash, "digest": factors.digest}
    save_factors(factors, snakemake.output.bases, facts)
    with atomic_path(snakemake.output.facts) as beside:
        beside.write_text(json.dumps({**facts, "ranks": factors.ranks}, indent=1))
