# Heatmaps: where in the picture a class or a text comes from. Decomposes the shown images by token;
# writes applications/heatmaps/{model}/{dataset}.parquet and the overlays beside it. The dump, where
# there is one, serves a probe for models without a classifier.


def dump_if_any(model, dataset):
    """What reading a dump depends on; nothing where the data set is not dumped."""
    kept = dataset in CONFIG.contributions.datasets and CONFIG.contributions.level != "moments"
    return store_inputs(model, dataset) if kept else []


def heatmap_texts():
    """Texts whose maps are drawn; none where maps are of classes."""
    asked = CONFIG.applications.heatmaps
    return [] if asked is None or isinstance(asked.directions, str) else asked.directions


def heatmap_pictures():
    """Overlays of one model: one for each image and direction."""
    asked = CONFIG.applications.heatmaps
    images = range(0 if asked is None else asked.images)
    directions = range(max(1, len(heatmap_texts())))
    folder = f"{RESULTS}/applications/heatmaps/{{model}}/{{dataset}}"
    return [f"{folder}/{image}-{direction}.png" for image in images for direction in directions]


rule heatmaps:
    input:
        store=lambda wildcards: dump_if_any(wildcards.model, wildcards.dataset),
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        maps=lambda wildcards: maps_of(wildcards.model) if heatmap_texts() else [],
        texts=lambda w: texts_of(space_of(w.model)) if heatmap_texts() else own_texts(w.model),
    output:
        table=f"{RESULTS}/applications/heatmaps/{{model}}/{{dataset}}.parquet",
        pictures=heatmap_pictures(),
    params:
        version=STAGE_VERSIONS["heatmaps"],
        model=lambda wildcards: model_facts(CONFIG.models[wildcards.model]),
        asked=lambda wildcards: section(CONFIG.applications.heatmaps),
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/heatmaps/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/heatmaps/{{model}}/{{dataset}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/heatmaps.py"
