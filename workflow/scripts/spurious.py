"""Accuracy per group without the components of a spurious cue (rule spurious)."""

from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.dumps import open_dump
from pipeline_lib.features import embeddings_of
from pipeline_lib.maps import load_maps
from pipeline_lib.repair import save_repair
from pipeline_lib.spurious import Asked, remove_cue

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    asked, given, made = config.applications.spurious, snakemake.input, snakemake.output
    texts = read_table("text_features", given.texts)
    dump = open_dump(store_folder(given.store), given.manifest)
    found = remove_cue(
        dump,
        load_maps(*given.maps),
        embeddings_of(texts, "word", "spurious").numpy(),
        embeddings_of(texts, "word", "core").numpy(),
        Asked(
            top_k=asked.top_k,
            max_k=asked.max_k,
            select_split=asked.select_split,
            report_split=asked.report_split,
            draws=asked.draws,
            seeds=asked.seeds,
            seed=config.seed,
        ),
    )
    facts = {"asked": asked.model_dump(), "seed": config.seed, "classifier": "probe"}
    write_table("spurious", found.table.assign(**names), made.table, facts)
    write_table("spurious_summary", found.summary.assign(**names), made.summary, facts)
    write_table("spurious_choices", found.choices.assign(**names), made.choices, facts)
    model = {key: dump.attributes.get(key) for key in ("model", "weight_hash")}
    save_repair(made.repair, found.classifier, found.ablated, found.shift, model)
