"""Scores, text labels and roles of the components of one model on one data set (rule scores)."""

import numpy as np
from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.coordinates import Source, encode
from pipeline_lib.dumps import open_dump
from pipeline_lib.features import concept_embeddings, embeddings_of
from pipeline_lib.maps import load_maps, without_test
from pipeline_lib.roles import role_table
from pipeline_lib.scores import moments, score_components, with_components
from pipeline_lib.significance import add_statistics
from pipeline_lib.textspan import label_components, label_table, random_pool

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    count, draws = snakemake.params.texts_per_component, snakemake.params.draws
    seed = snakemake.params.seed
    dump = open_dump(store_folder(snakemake.input.store), snakemake.input.manifest)
    precision = float(np.finfo(config.contributions.dtype).eps)
    source = Source(dump.n, dump.contributions, precision=precision)
    positions = without_test(dump.manifest["split"])
    held = np.setdiff1d(np.arange(dump.n), positions)
    maps = load_maps(*snakemake.input.maps)
    texts = read_table("text_features", snakemake.input.texts)
    encoded = encode(source.at(positions))
    found = moments(encoded, maps)
    fresh = moments(encode(source.at(held), bases=encoded.bases), maps) if len(held) > 1 else None
    facts = {"images": found.n, "texts_per_component": count, "draws": draws, "seed": seed}

    features = concept_embeddings(texts)
    scores = score_components(found, features)
    scores = add_statistics(scores, encoded, found, features, draws=draws, seed=seed)
    scores = with_components(scores, dump.components).assign(**names)
    write_table("scores", scores, snakemake.output.scores, facts)

    pool = texts[texts["use"] == "pool"]
    embeddings, categories = embeddings_of(texts, "pool"), pool["feature"].tolist()
    vectors = random_pool(*embeddings.shape, seed=seed)
    random = label_components(found, vectors, count=count, min_gain=0.0)
    labels = label_table(
        found,
        label_components(found, embeddings, count=count),
        pool["text"].tolist(),
        categories,
        dump.components,
        random=random,
        heldout=fresh,
    ).assign(**names)
    write_table("labels", labels, snakemake.output.labels, facts)
    roles = role_table(labels, found, categories, draws=draws, seed=seed)
    write_table("roles", roles.assign(**names), snakemake.output.roles, facts)
