# Maps: linear maps from a model's contributions to its CLIP space. Reads the dump of one model and
# the targets (image embeddings of the reference, or text embeddings of labels or captions); writes
# maps/{model}.safetensors, .json and .metrics.parquet. The map of a CLIP model is the identity.
# Maps of another run can be given; they are measured on this run's images and taken as they are.

# Models whose maps are fitted from moments, each with the data set of the fit.
MOMENT_FITS = settings.moment_fits(CONFIG)


def maps_of(model):
    """Maps of a model: the file of weights and its manifest."""
    return [f"{RESULTS}/maps/{model}.safetensors", f"{RESULTS}/maps/{model}.json"]


def map_settings(model):
    """What the maps of a model depend on beside their inputs."""
    if settings.is_clip(CONFIG.models[model].id):
        return {"method": "identity", "heldout": CONFIG.maps.heldout}
    return section(CONFIG.maps)


def map_images(model):
    """Image embeddings that the maps of a model are fitted to, where they are."""
    fitted = map_settings(model).get("target") == "image"
    return feature_inputs(CONFIG.maps.dataset) if fitted else []


def map_texts(model):
    """Text embeddings that the maps of a model are fitted to, where they are."""
    fitted = map_settings(model).get("target") in ("label_text", "caption_text")
    return texts_of(space_of(model)) if fitted else []


def given_maps(model):
    """Maps of another run that are taken as they are, where there are."""
    folder = map_settings(model).get("given") if CONFIG.maps is not None else None
    return [f"{folder}/{model}.safetensors", f"{folder}/{model}.json"] if folder else []


rule maps:
    input:
        store=lambda wildcards: store_inputs(wildcards.model, CONFIG.maps.dataset),
        manifest=lambda wildcards: manifest_of(CONFIG.maps.dataset),
        images=lambda wildcards: map_images(wildcards.model),
        texts=lambda wildcards: map_texts(wildcards.model),
        given=lambda wildcards: given_maps(wildcards.model),
    output:
        weights=f"{RESULTS}/maps/{{model}}.safetensors",
        manifest=f"{RESULTS}/maps/{{model}}.json",
        metrics=f"{RESULTS}/maps/{{model}}.metrics.parquet",
    params:
        version=STAGE_VERSIONS["maps"],
        dataset=lambda wildcards: CONFIG.maps.dataset,
        settings=lambda wildcards: map_settings(wildcards.model),
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/maps/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/maps/{{model}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/maps.py"


def all_maps():
    """Maps and their metrics, of every model."""
    models = CONFIG.models if CONFIG.maps is not None else []
    return [f"{RESULTS}/maps/{model}.metrics.parquet" for model in models]
