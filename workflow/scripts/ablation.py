"""Accuracy of one model on one data set while components are mean-ablated (rule ablation)."""

from _heads import read_head
from _job import job, load_run_model, store_folder

from pipeline_lib.ablation import ablation_table, targets_of
from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.dumps import open_dump

with job(snakemake) as config:
    model, dataset = snakemake.wildcards.model, snakemake.wildcards.dataset
    asked, texts = config.applications.ablation, snakemake.input.texts
    dump = open_dump(store_folder(snakemake.input.store), snakemake.input.manifest)
    own = asked.classifier in ("own", "auto") and dump.has_logits
    table = ablation_table(
        dump,
        targets_of(dump.manifest, config.concepts),
        asked=asked.classifier,
        split=asked.split,
        reference_split=asked.reference_split,
        head=read_head(load_run_model(config.models[model])) if own else None,
        texts=read_table("text_features", texts) if texts else None,
        seed=config.seed,
    )
    facts = {"asked": asked.model_dump(), "seed": config.seed}
    table = table.assign(model=model, dataset=dataset)
    write_table("ablation", table, snakemake.output.table, facts)
