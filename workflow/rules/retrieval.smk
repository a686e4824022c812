# Retrieval: images found by one property, asked by text and by image. Reads the dump of one model,
# its maps and scores, and the embeddings of the reference CLIP, which is one of the baselines;
# writes applications/retrieval/{model}/{dataset}.parquet, .examples.parquet and .choices.parquet.


def reference_images(dataset):
    """Image embeddings of the reference, where it has an image tower."""
    has_tower = CONFIG.reference is not None and CONFIG.reference.id is not None
    return feature_inputs(dataset) if has_tower else []


rule retrieval:
    input:
        store=lambda wildcards: store_inputs(wildcards.model, wildcards.dataset),
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        maps=lambda wildcards: maps_of(wildcards.model),
        scores=lambda w: f"{RESULTS}/scores/{w.model}/{CONFIG.scores.dataset}.scores.parquet",
        texts=lambda wildcards: texts_of(space_of(wildcards.model)),
        reference_images=lambda wildcards: reference_images(wildcards.dataset),
        reference_texts=lambda w: texts_of("reference") if reference_images(w.dataset) else [],
    output:
        table=f"{RESULTS}/applications/retrieval/{{model}}/{{dataset}}.parquet",
        examples=f"{RESULTS}/applications/retrieval/{{model}}/{{dataset}}.examples.parquet",
        choices=f"{RESULTS}/applications/retrieval/{{model}}/{{dataset}}.choices.parquet",
    params:
        version=STAGE_VERSIONS["retrieval"],
        asked=lambda wildcards: section(CONFIG.applications.retrieval),
        seed=CONFIG.seed,
        shown=CONFIG.report.examples,
    log:
        f"{RESULTS}/logs/retrieval/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/retrieval/{{model}}/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/retrieval.py"
