# Ablation: accuracy while components are replaced by their means over reference images. Reads the
# dump of one model on one data set, and some of its images where the class token is read; writes
# applications/ablation/{model}/{dataset}.parquet.


def own_texts(model):
    """Text embeddings in a CLIP model's own space, for zero-shot classifiers; of others nothing."""
    return texts_of(model) if settings.is_clip(CONFIG.models[model].id) else []


rule ablation:
    input:
        store=lambda wildcards: store_inputs(wildcards.model, wildcards.dataset),
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
        texts=lambda wildcards: own_texts(wildcards.model),
    output:
        table=f"{RESULTS}/applications/ablation/{{model}}/{{dataset}}.parquet",
    params:
        version=STAGE_VERSIONS["ablation"],
        model=lambda wildcards: model_facts(CONFIG.models[wildcards.model]),
        asked=lambda wildcards: section(CONFIG.applications.ablation),
        concepts=CONFIG.concepts,
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/ablation/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ablation/{{model}}/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/ablation.py"


def application_tables(name):
    """The tables of one application, of every model; none where it is switched off."""
    asked = getattr(CONFIG.applications, name)
    models = [] if asked is None else CONFIG.models
    return [f"{RESULTS}/applications/{name}/{model}/{asked.dataset}.parquet" for model in models]
