"""Retrieval by one property with one model on one data set (rule retrieval)."""

from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.dumps import open_dump, open_features
from pipeline_lib.maps import load_maps
from pipeline_lib.passes import images_of_split
from pipeline_lib.retrieval import retrieve

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    asked, given = config.applications.retrieval, snakemake.input
    dump = open_dump(store_folder(given.store), given.manifest)
    index = images_of_split(dump.manifest, asked.split)
    clip = None
    if given.reference_images:
        features = open_features(store_folder(given.reference_images), given.manifest)
        clip = features.embeddings(index), read_table("text_features", given.reference_texts)
    metrics, examples = retrieve(
        dump,
        load_maps(*given.maps),
        read_table("scores", given.scores),
        read_table("text_features", given.texts),
        index,
        components=asked.components,
        ks=asked.k,
        queries=asked.queries,
        seed=config.seed,
        shown=snakemake.params.shown,
        clip=clip,
    )
    facts = {"asked": asked.model_dump(), "seed": config.seed}
    write_table("retrieval", metrics.assign(**names), snakemake.output.table, facts)
    write_table("retrieval_examples", examples.assign(**names), snakemake.output.examples, facts)
