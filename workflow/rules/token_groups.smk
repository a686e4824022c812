# Token groups: the finest level of the hierarchy, what the tokens on and off the object add to the
# strongest heads. Decomposes some images by token; writes scores/{model}/{dataset}.tokens.parquet
# (table hierarchy). Only where scores.token_heads is set.


rule token_groups:
    input:
        hierarchy=f"{RESULTS}/scores/{{model}}/{{dataset}}.hierarchy.parquet",
        components=f"{DUMP}.components.parquet",
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        maps=lambda wildcards: maps_of(wildcards.model),
        texts=lambda wildcards: texts_of(space_of(wildcards.model)),
    output:
        table=f"{RESULTS}/scores/{{model}}/{{dataset}}.tokens.parquet",
    params:
        version=STAGE_VERSIONS["scores"],
        model=lambda wildcards: model_facts(CONFIG.models[wildcards.model]),
        heads=lambda wildcards: CONFIG.scores.token_heads,
        images=96,
        method=lambda wildcards: CONFIG.scores.method,
        texts=lambda wildcards: min(3, CONFIG.scores.texts_per_component),
    log:
        f"{RESULTS}/logs/token_groups/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/token_groups/{{model}}/{{dataset}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/token_groups.py"


def all_token_groups():
    """Tables of token groups, of every model, where they are asked for."""
    if CONFIG.scores is None or not CONFIG.scores.token_heads:
        return []
    dataset = CONFIG.scores.dataset
    return [f"{RESULTS}/scores/{model}/{dataset}.tokens.parquet" for model in CONFIG.models]
