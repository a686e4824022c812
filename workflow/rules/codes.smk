# Codes: images as short lists of texts, and the components that carry each text. Reads the dump of
# one model on one data set, its maps and the text embeddings of its CLIP space; writes
# applications/codes/{model}/{dataset}.parquet, .summary.parquet and .carriers.parquet.


rule codes:
    input:
        store=lambda wildcards: store_inputs(wildcards.model, wildcards.dataset),
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        maps=lambda wildcards: maps_of(wildcards.model),
        texts=lambda wildcards: texts_of(space_of(wildcards.model)),
    output:
        table=f"{RESULTS}/applications/codes/{{model}}/{{dataset}}.parquet",
        summary=f"{RESULTS}/applications/codes/{{model}}/{{dataset}}.summary.parquet",
        carriers=f"{RESULTS}/applications/codes/{{model}}/{{dataset}}.carriers.parquet",
    params:
        version=STAGE_VERSIONS["codes"],
        asked=lambda wildcards: section(CONFIG.applications.codes),
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/codes/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/codes/{{model}}/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/codes.py"


def all_applications():
    """The first table of every application, of every model."""
    names = type(CONFIG.applications).model_fields
    return [path for name in names for path in application_tables(name)] + all_probes()
