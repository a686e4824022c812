# Retrieval: images found by one property, asked by text and by image. Reads the dump of one model,
# its maps and scores, and the embeddings of the reference CLIP, which is one of the baselines;
# writes applications/retrieval/{model}/{dataset}.parquet, .examples.parquet and .choices.parquet.
# Probe images of one's own (`probes`) are decomposed by the model; the images like them go into
# {dataset}.probes.parquet and {dataset}.probes/{number}.png, one picture for each probe.


def reference_images(dataset):
    """Image embeddings of the reference, where it has an image tower."""
    has_tower = CONFIG.reference is not None and CONFIG.reference.id is not None
    return feature_inputs(dataset) if has_tower else []


def retrieval_settings():
    """What the measurement depends on: probe images of one's own are not part of it."""
    asked = section(CONFIG.applications.retrieval)
    return {key: value for key, value in asked.items() if key != "probes"}


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
        asked=lambda wildcards: retrieval_settings(),
        seed=CONFIG.seed,
        shown=CONFIG.report.examples,
    log:
        f"{RESULTS}/logs/retrieval/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/retrieval/{{model}}/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/retrieval.py"


def probes():
    """Probe images that the configuration names."""
    asked = CONFIG.applications.retrieval
    return [] if asked is None else asked.probes


rule probes:
    input:
        store=lambda wildcards: store_inputs(wildcards.model, wildcards.dataset),
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        maps=lambda wildcards: maps_of(wildcards.model),
        scores=lambda w: f"{RESULTS}/scores/{w.model}/{CONFIG.scores.dataset}.scores.parquet",
        texts=lambda wildcards: texts_of(space_of(wildcards.model)),
        choices=f"{RESULTS}/applications/retrieval/{{model}}/{{dataset}}.choices.parquet",
        probes=probes(),
    output:
        table=f"{RESULTS}/applications/retrieval/{{model}}/{{dataset}}.probes.parquet",
        pictures=[
            f"{RESULTS}/applications/retrieval/{{model}}/{{dataset}}.probes/{number}.png"
            for number in range(len(probes()))
        ],
    params:
        version=STAGE_VERSIONS["retrieval"],
        model=lambda wildcards: model_facts(CONFIG.models[wildcards.model]),
        components=lambda wildcards: CONFIG.applications.retrieval.components,
        seed=CONFIG.seed,
        shown=CONFIG.report.examples,
    log:
        f"{RESULTS}/logs/probes/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/probes/{{model}}/{{dataset}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/probes.py"


def all_probes():
    """What was found for probe images of one's own, where there are such, by every model."""
    asked, models = CONFIG.applications.retrieval, CONFIG.models if probes() else []
    return [f"{RESULTS}/applications/retrieval/{m}/{asked.dataset}.probes.parquet" for m in models]
