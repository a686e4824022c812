# Comparison: the models of a run side by side. Of the scores of all models, one job writes
# comparison/{dataset}.parquet (where in depth each feature lives, and how concentrated it is). Of
# their dumps on some images, with their maps, another writes comparison/{dataset}.similarity.parquet
# (how alike any two components of a model vary over the images) and
# comparison/{dataset}.counterparts.parquet (for each component the one of each model most like it).


rule comparison:
    input:
        scores=lambda wildcards: score_tables("scores", wildcards.dataset),
        redraws=lambda wildcards: (
            score_tables("redraws", wildcards.dataset) if CONFIG.contributions.is_whole else []
        ),
    output:
        table=f"{RESULTS}/comparison/{{dataset}}.parquet",
    params:
        version=STAGE_VERSIONS["comparison"],
    log:
        f"{RESULTS}/logs/comparison/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/comparison/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/comparison.py"


rule similarity:
    input:
        dumps=lambda w: [path for model in CONFIG.models for path in store_inputs(model, w.dataset)],
        maps=lambda wildcards: [path for model in CONFIG.models for path in maps_of(model)],
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
    output:
        similarity=f"{RESULTS}/comparison/{{dataset}}.similarity.parquet",
        counterparts=f"{RESULTS}/comparison/{{dataset}}.counterparts.parquet",
    params:
        version=STAGE_VERSIONS["comparison"],
        models=list(CONFIG.models),
    log:
        f"{RESULTS}/logs/similarity/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/similarity/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/similarity.py"


def all_comparisons():
    """Tables of the comparison, where there are scores; what reads dumps where these are kept."""
    if CONFIG.scores is None:
        return []
    of_dumps = [".similarity", ".counterparts"] if CONFIG.contributions.is_whole else []
    kinds = ["", *of_dumps]
    return [f"{RESULTS}/comparison/{CONFIG.scores.dataset}{kind}.parquet" for kind in kinds]
