# Segmentation: token heat maps thresholded and compared with the masks of the objects, beside
# baselines on the same pixels. Decomposes the images by token; writes
# applications/segmentation/{model}/{dataset}.parquet, beside it the results image by image, the
# recipes to choose from, and pictures of the best, the median and the worst image.

SEGMENTS = f"{RESULTS}/applications/segmentation/{{model}}/{{dataset}}"


rule segmentation:
    input:
        store=lambda wildcards: dump_if_any(wildcards.model, wildcards.dataset),
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        texts=lambda wildcards: own_texts(wildcards.model),
    output:
        table=f"{SEGMENTS}.parquet",
        images=f"{SEGMENTS}.images.parquet",
        choices=f"{SEGMENTS}.choices.parquet",
        examples=f"{SEGMENTS}.examples.parquet",
        pictures=[f"{SEGMENTS}/{place}.png" for place in ("best", "median", "worst")],
    params:
        version=STAGE_VERSIONS["segmentation"],
        model=lambda wildcards: model_facts(CONFIG.models[wildcards.model]),
        asked=lambda wildcards: section(CONFIG.applications.segmentation),
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/segmentation/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/segmentation/{{model}}/{{dataset}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/segmentation.py"
