# Features: the reference CLIP's embeddings of the images. Reads the images of one shard at a time;
# writes features/{dataset}.zarr. (The embeddings of texts are in texts.smk.)

FEATURES = f"{RESULTS}/features/{{dataset}}"


rule image_features:
    input:
        shard=shard_rows,
    output:
        embeddings=shard_object(f"{FEATURES}.zarr", "features", "image_embeddings", "{shard}"),
        record=f"{FEATURES}.shards/{{shard}}.json",
    params:
        version=STAGE_VERSIONS["features"],
        reference=lambda wildcards: model_facts(CONFIG.reference),
        shard_size=CONFIG.contributions.shard_size,
    log:
        f"{RESULTS}/logs/image_features/{{dataset}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/image_features/{{dataset}}/{{shard}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/image_features.py"


rule image_features_store:
    input:
        embeddings=lambda w: feature_inputs(w.dataset)[1:],
        records=lambda w: expand(
            f"{FEATURES}.shards/{{shard}}.json", dataset=w.dataset, shard=shards_of(w.dataset)
        ),
        manifest=f"{RESULTS}/manifest/{{dataset}}/images.parquet",
    output:
        store=f"{FEATURES}.zarr/zarr.json",
    params:
        version=STAGE_VERSIONS["features"],
    log:
        f"{RESULTS}/logs/image_features_store/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/image_features_store/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/image_features_store.py"
