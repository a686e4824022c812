"""Retrieval by one property with one model on one data set (rule retrieval)."""

from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.dumps import open_dump, open_features
from pipeline_lib.maps import load_maps
from pipeline_lib.passes import images_of_split
from pipeline_lib.retrieval import Asked, retrieve

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    asked, given = config.applications.retrieval, snakemake.input
    dump = open_dump(store_folder(given.store), given.manifest)
    index = images_of_split(dump.manifest, asked.split)
    clip = None
    if given.reference_images:
        features = open_features(store_folder(given.reference_images), given.manifest)
        clip = features.embeddings(index), read_table("text_features", given.reference_texts)
    found = retrieve(
        dump,
        load_maps(*given.maps),
        read_table("scores", given.scores),
        read_table("text_features", given.texts),
        index,
        images_of_split(dump.manifest, asked.choose_split),
        Asked(
            ks=tuple(asked.k),
            queries=asked.queries,
            components=asked.components,
            counts=tuple(asked.candidates),
            seed=config.seed,
            shown=snakemake.params.shown,
        ),
        clip=clip,
    )
    facts, made = {"asked": asked.model_dump(), "seed": config.seed}, snakemake.output
    write_table("retrieval", found.table.assign(**names), made.table, facts)
    write_table("retrieval_examples", found.examples.assign(**names), made.examples, facts)
    write_table("retrieval_choices", found.choices.assign(**names), made.choices, facts)
