# Comparison: the models of a run side by side. Reads the scores of all models, and their dumps on
# some images with their maps; writes comparison/{dataset}.parquet (where in depth each feature
# lives, and how concentrated it is) and comparison/{dataset}.counterparts.parquet (which component
# of one model varies over the images like which of another).


rule comparison:
    input:
        scores=lambda wildcards: score_tables("scores", wildcards.dataset),
        dumps=lambda w: [path for model in CONFIG.models for path in store_inputs(model, w.dataset)],
        maps=lambda wildcards: [path for model in CONFIG.models for path in maps_of(model)],
        manifest=lambda wildcards: manifest_of(wildcards.dataset),
    output:
        table=f"{RESULTS}/comparison/{{dataset}}.parquet",
        counterparts=f"{RESULTS}/comparison/{{dataset}}.counterparts.parquet",
    params:
        version=STAGE_VERSIONS["comparison"],
        models=list(CONFIG.models),
    log:
        f"{RESULTS}/logs/comparison/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/comparison/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/comparison.py"


def all_comparisons():
    """Tables of the comparison, where there are scores of several models."""
    whole = CONFIG.contributions.is_whole
    if CONFIG.scores is None or len(CONFIG.models) < 2 or not whole:
        return []
    kinds = ("", ".counterparts")
    return [f"{RESULTS}/comparison/{CONFIG.scores.dataset}{kind}.parquet" for kind in kinds]
