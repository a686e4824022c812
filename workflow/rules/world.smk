# World: renders the data sets of the embedded demo. Reads nothing but the configuration; writes
# world/{dataset}/ with images, masks and a table of what is on them.


def world_params(dataset):
    """What decides the pictures of a rendered data set."""
    part = section(CONFIG.datasets[dataset])
    return {key: part[key] for key in part if key not in ("bad_share", "split")}


def world_table(wildcards):
    """The table of a rendered data set; nothing for other data sets."""
    rendered = CONFIG.datasets[wildcards.dataset].source in ("world", "world_spurious")
    return f"{RESULTS}/world/{wildcards.dataset}/table.parquet" if rendered else []


rule world:
    output:
        table=f"{RESULTS}/world/{{dataset}}/table.parquet",
    params:
        version=STAGE_VERSIONS["world"],
        world=lambda wildcards: world_params(wildcards.dataset),
    log:
        f"{RESULTS}/logs/world/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/world/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/world.py"
