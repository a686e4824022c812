"""Scores and text labels of the components of one model on one data set (rule scores)."""

import numpy as np
from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.coordinates import Source, encode
from pipeline_lib.dumps import open_dump
from pipeline_lib.features import concept_embeddings, embeddings_of
from pipeline_lib.maps import load_maps, without_test
from pipeline_lib.scores import moments, score_components, with_components
from pipeline_lib.textspan import label_components, label_table

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    dump = open_dump(store_folder(snakemake.input.store), snakemake.input.manifest)
    precision = float(np.finfo(config.contributions.dtype).eps)
    source = Source(dump.n, dump.contributions, precision=precision).at(
        without_test(dump.manifest["split"])
    )
    found = moments(encode(source), load_maps(*snakemake.input.maps))
    texts = read_table("text_features", snakemake.input.texts)
    facts = {"images": found.n, "texts_per_component": snakemake.params.texts_per_component}

    scores = score_components(found, concept_embeddings(texts))
    scores = with_components(scores, dump.components).assign(**names)
    write_table("scores", scores, snakemake.output.scores, facts)

    pool = texts[texts["use"] == "pool"]
    labels = label_components(
        found, embeddings_of(texts, "pool"), count=snakemake.params.texts_per_component
    )
    table = label_table(
        found, labels, pool["text"].tolist(), pool["feature"].tolist(), dump.components
    )
    write_table("labels", table.assign(**names), snakemake.output.labels, facts)
