# Validation: the scores of all models held against what is known of their components. Reads tables
# only; writes validation/{dataset}.parquet (how well each score follows each truth) and
# validation/{dataset}.confirmed.parquet (whether the first component of each factor is among the
# best by both truths). `snakemake validation_page` writes docs/validation.md from them.


def score_tables(kind, dataset):
    """One kind of table of the rule `scores`, of every model."""
    return [f"{RESULTS}/scores/{model}/{dataset}.{kind}.parquet" for model in CONFIG.models]


rule validation:
    input:
        scores=lambda wildcards: score_tables("scores", wildcards.dataset),
        truths=lambda wildcards: score_tables("truth", wildcards.dataset),
        redraws=lambda wildcards: score_tables("redraws", wildcards.dataset),
    output:
        table=f"{RESULTS}/validation/{{dataset}}.parquet",
        confirmed=f"{RESULTS}/validation/{{dataset}}.confirmed.parquet",
    params:
        version=STAGE_VERSIONS["validation"],
        deals=1000,
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/validation/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/validation/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/validation.py"


def all_validations():
    """Tables of the validation, where there are scores."""
    if CONFIG.scores is None or not CONFIG.contributions.is_whole:
        return []
    kinds = ("", ".confirmed")
    return [f"{RESULTS}/validation/{CONFIG.scores.dataset}{kind}.parquet" for kind in kinds]


def page_tables():
    """Tables of docs/validation.md: declared name to files."""
    dataset = CONFIG.scores.dataset
    return {
        "validation": [f"{RESULTS}/validation/{dataset}.parquet"],
        "confirmed": [f"{RESULTS}/validation/{dataset}.confirmed.parquet"],
        "map_metrics": all_maps(),
        **{kind: score_tables(kind, dataset) for kind in ("truth", "labels", "reconstruction")},
        "retrieval": application_tables("retrieval"),
        "segmentation": application_tables("segmentation"),
        "segmentation_images": beside_tables("segmentation", "images"),
        "spurious_summary": beside_tables("spurious", "summary"),
        "code_summary": beside_tables("codes", "summary"),
    }


def beside_tables(name, kind):
    """One of the other tables of an application, of every model."""
    return [path.replace(".parquet", f".{kind}.parquet") for path in application_tables(name)]


rule validation_page:
    input:
        tables=lambda wildcards: sum(page_tables().values(), []),
    output:
        page="docs/validation.md",
    params:
        tables=lambda wildcards: page_tables(),
    log:
        f"{RESULTS}/logs/validation_page.log",
    benchmark:
        f"{RESULTS}/benchmarks/validation_page.tsv"
    threads: 1
    script:
        "../scripts/validation_page.py"
