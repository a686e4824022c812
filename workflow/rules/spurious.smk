# Spurious: accuracy per group when the components of a spurious cue are mean-ablated. Reads the
# dump of one model on one data set, its maps and the embeddings of the words; writes
# applications/spurious/{model}/{dataset}.parquet, beside it a summary over redraws of the images, how
# many components were tried, and the ablation as a module (pipeline_lib.repair.load_repair).

CUE = f"{RESULTS}/applications/spurious/{{model}}/{{dataset}}"


rule spurious:
    input:
        store=lambda wildcards: store_inputs(wildcards.model, wildcards.dataset),
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        maps=lambda wildcards: maps_of(wildcards.model),
        texts=lambda wildcards: texts_of(space_of(wildcards.model)),
    output:
        table=f"{CUE}.parquet",
        summary=f"{CUE}.summary.parquet",
        choices=f"{CUE}.choices.parquet",
        repair=f"{CUE}.repair.safetensors",
    params:
        version=STAGE_VERSIONS["spurious"],
        asked=lambda wildcards: section(CONFIG.applications.spurious),
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/spurious/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/spurious/{{model}}/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/spurious.py"
