# Scores: how much of each feature every component carries, and the texts that explain it. Reads
# the dump of one model on one data set, its maps and the text embeddings of its CLIP space; writes
# scores/{model}/{dataset}.scores.parquet, .labels.parquet and .roles.parquet.

SCORE_TABLES = ["scores", "labels", "roles"]


rule scores:
    input:
        store=lambda wildcards: store_inputs(wildcards.model, wildcards.dataset),
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        maps=lambda wildcards: maps_of(wildcards.model),
        texts=lambda wildcards: texts_of(space_of(wildcards.model)),
    output:
        scores=f"{RESULTS}/scores/{{model}}/{{dataset}}.scores.parquet",
        labels=f"{RESULTS}/scores/{{model}}/{{dataset}}.labels.parquet",
        roles=f"{RESULTS}/scores/{{model}}/{{dataset}}.roles.parquet",
    params:
        version=STAGE_VERSIONS["scores"],
        texts_per_component=lambda wildcards: CONFIG.scores.texts_per_component,
        draws=200,
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/scores/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/scores/{{model}}/{{dataset}}.tsv"
    threads: MODEL_THREADS
    script:
        "../scripts/scores.py"


def all_scores():
    """Scores and labels, of every model."""
    if CONFIG.scores is None:
        return []
    folders = [f"{RESULTS}/scores/{model}/{CONFIG.scores.dataset}" for model in CONFIG.models]
    return [f"{folder}.{kind}.parquet" for folder in folders for kind in SCORE_TABLES]
