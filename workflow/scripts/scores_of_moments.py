"""Scores, labels, roles and hierarchy of one model from moments (rule scores_of_moments)."""

import numpy as np
from _described import Pool, write_described
from _job import job

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.factors import load_factors
from pipeline_lib.features import concept_embeddings
from pipeline_lib.hierarchy import Part
from pipeline_lib.labelling import Sample
from pipeline_lib.maps import load_maps
from pipeline_lib.scores import score_components, with_components
from pipeline_lib.significance import add_chance, add_margins
from pipeline_lib.streamed import load_moments

with job(snakemake):
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    given, made, asked = snakemake.input, snakemake.output, snakemake.params
    count, draws, seed = asked.texts_per_component, asked.draws, asked.seed
    groups, factors = load_moments(given.moments[0]), load_factors(given.bases)
    components = read_table("components", given.moments[1])
    maps, texts = load_maps(*given.maps), read_table("text_features", given.texts)
    seen = groups["fit"]
    if "heldout" in groups:  # apart for the fit of the maps alone
        seen.merge(groups["heldout"])
    found = seen.mapped(factors, maps)
    fresh = Sample(groups["test"].mapped(factors, maps)) if groups["test"].n > 1 else None
    facts = {"images": found.n, "texts_per_component": count, "draws": draws, "seed": seed}

    features = concept_embeddings(texts)
    scores = score_components(found, features).assign(low=np.nan, high=np.nan)
    scores = add_margins(add_chance(scores, found, features, draws=draws, seed=seed))
    write_table("scores", with_components(scores, components).assign(**names), made.scores, facts)

    pool = Pool.of(texts, seed)
    random = pool.labelled_at_random(asked.method, Sample(found), count)

    def of_parts(parts: list[Part]) -> tuple[Sample, Sample | None]:
        summed = Sample(seen.parts(factors, found, parts))
        if fresh is None:
            return summed, None
        return summed, Sample(groups["test"].parts(factors, fresh.found, parts))

    images = (Sample(found), fresh)
    write_described(snakemake, components, pool, *images, of_parts, facts, **random)
