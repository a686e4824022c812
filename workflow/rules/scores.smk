# Scores: how much of each feature every component carries, the texts that explain it, and what is
# known of it from the images' factors and from the reference CLIP's ranking. Reads the dump of one
# model on one data set, its maps and the text embeddings of its CLIP space; writes
# scores/{model}/{dataset}.{scores,labels,roles,hierarchy,truth,redraws,reconstruction}.parquet.

SCORE_TABLES = ["scores", "labels", "roles", "hierarchy", "truth", "redraws", "reconstruction"]


def reconstruction_steps():
    """Texts per head with which models are reconstructed."""
    most = 2 * CONFIG.scores.texts_per_component
    return [0, *(step for step in (1, 2, 5, 10, 20, 50, 100) if step < most), most]


rule scores:
    input:
        store=lambda wildcards: store_inputs(wildcards.model, wildcards.dataset),
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        maps=lambda wildcards: maps_of(wildcards.model),
        texts=lambda wildcards: texts_of(space_of(wildcards.model)),
        images=lambda wildcards: reference_images(wildcards.dataset),
        reference=texts_of("reference") if CONFIG.reference is not None else [],
    output:
        scores=f"{RESULTS}/scores/{{model}}/{{dataset}}.scores.parquet",
        labels=f"{RESULTS}/scores/{{model}}/{{dataset}}.labels.parquet",
        roles=f"{RESULTS}/scores/{{model}}/{{dataset}}.roles.parquet",
        hierarchy=f"{RESULTS}/scores/{{model}}/{{dataset}}.hierarchy.parquet",
        truth=f"{RESULTS}/scores/{{model}}/{{dataset}}.truth.parquet",
        redraws=f"{RESULTS}/scores/{{model}}/{{dataset}}.redraws.parquet",
        reconstruction=f"{RESULTS}/scores/{{model}}/{{dataset}}.reconstruction.parquet",
    params:
        version=STAGE_VERSIONS["scores"],
        texts_per_component=lambda wildcards: CONFIG.scores.texts_per_component,
        method=lambda wildcards: CONFIG.scores.method,
        steps=lambda wildcards: reconstruction_steps(),
        draws=2000,
        redraws=200,
        shuffles=200,
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
    kinds = MOMENT_TABLES if CONFIG.contributions.level == "moments" else SCORE_TABLES
    folders = [f"{RESULTS}/scores/{model}/{CONFIG.scores.dataset}" for model in CONFIG.models]
    return [f"{folder}.{kind}.parquet" for folder in folders for kind in kinds]
