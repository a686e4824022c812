"""Accuracy per group without the components of a spurious cue (rule spurious)."""

from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.dumps import open_dump
from pipeline_lib.features import embeddings_of
from pipeline_lib.maps import load_maps
from pipeline_lib.spurious import remove_cue

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    asked = config.applications.spurious
    texts = read_table("text_features", snakemake.input.texts)
    table = remove_cue(
        open_dump(store_folder(snakemake.input.store), snakemake.input.manifest),
        load_maps(*snakemake.input.maps),
        embeddings_of(texts, "word", "spurious").numpy(),
        embeddings_of(texts, "word", "core").numpy(),
        top_k=asked.top_k,
        select_split=asked.select_split,
        report_split=asked.report_split,
        draws=asked.draws,
        seed=config.seed,
    )
    facts = {"asked": asked.model_dump(), "seed": config.seed, "classifier": "probe"}
    write_table("spurious", table.assign(**names), snakemake.output.table, facts)
