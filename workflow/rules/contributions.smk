# Contributions: the dumps. Finds the bases in which a model's contributions are stored, from its
# weights. Reads the images of one shard at a time; writes the objects of that shard into
# contributions/{model}/{dataset}.zarr and a record of how they were made. When all shards are
# there, one job checks them and writes the store's metadata and table of components.
# The array of logits is written before the others and has no output of its own: not every model
# has a classifier.

DUMP = f"{RESULTS}/contributions/{{model}}/{{dataset}}"
DUMP_ARRAYS = ["coordinates", "representation", "error", "rounding"]
BASES = f"{RESULTS}/contributions/{{model}}.bases"


def bases_level():
    """What of the level decides the bases: moments are taken in those of a factored dump."""
    level = CONFIG.contributions.level
    return "factored" if level == "moments" else level


def projection_texts(model):
    """Texts whose directions are kept at level `projected`, where the maps to them are known."""
    if CONFIG.contributions.level != "projected":
        return []
    known = settings.is_clip(CONFIG.models[model].id) or given_maps(model)
    return texts_of(space_of(model)) if known else []


rule bases:
    input:
        texts=lambda wildcards: projection_texts(wildcards.model),
        maps=lambda w: given_maps(w.model) if projection_texts(w.model) else [],
    output:
        bases=f"{BASES}.safetensors",
        facts=f"{BASES}.json",
    params:
        version=STAGE_VERSIONS["contributions"],
        model=lambda wildcards: model_facts(CONFIG.models[wildcards.model]),
        per=CONFIG.contributions.per,
        bias=CONFIG.contributions.bias,
        level=bases_level(),
        shard_size=CONFIG.contributions.shard_size,
    log:
        f"{RESULTS}/logs/bases/{{model}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/bases/{{model}}.tsv"
    threads: 1
    priority: 10  # before any dump: then the first one knows whether all fit on the disk
    script:
        "../scripts/bases.py"


# The file of bases is large: Snakemake would go by its time. What they are is decided by the small
# file beside it, which is compared by content.


rule contributions:
    input:
        shard=shard_rows,
        facts=f"{BASES}.json",
        bases=ancient(f"{BASES}.safetensors"),
    output:
        coordinates=shard_object(f"{DUMP}.zarr", "contributions", "coordinates", "{shard}"),
        representation=shard_object(f"{DUMP}.zarr", "contributions", "representation", "{shard}"),
        error=shard_object(f"{DUMP}.zarr", "contributions", "error", "{shard}"),
        rounding=shard_object(f"{DUMP}.zarr", "contributions", "rounding", "{shard}"),
        record=f"{DUMP}.shards/{{shard}}.parquet",
    params:
        version=STAGE_VERSIONS["contributions"],
        model=lambda wildcards: model_facts(CONFIG.models[wildcards.model]),
        per=CONFIG.contributions.per,
        bias=CONFIG.contributions.bias,
        dtype=CONFIG.contributions.dtype,
        shard_size=CONFIG.contributions.shard_size,
    log:
        f"{RESULTS}/logs/contributions/{{model}}/{{dataset}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/contributions/{{model}}/{{dataset}}/{{shard}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/contributions.py"


rule contributions_store:
    input:
        objects=lambda w: store_inputs(w.model, w.dataset)[2:],
        records=lambda w: expand(
            f"{DUMP}.shards/{{shard}}.parquet", **w, shard=shards_of(w.dataset)
        ),
        manifest=f"{RESULTS}/manifest/{{dataset}}/images.parquet",
        facts=f"{BASES}.json",
        bases=ancient(f"{BASES}.safetensors"),
    output:
        store=f"{DUMP}.zarr/zarr.json",
        components=f"{DUMP}.components.parquet",
        manifest=f"{DUMP}.json",
    params:
        version=STAGE_VERSIONS["contributions"],
        tolerance=CONFIG.contributions.tolerance,
    log:
        f"{RESULTS}/logs/contributions_store/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/contributions_store/{{model}}/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/contributions_store.py"


def dump_files(model, dataset):
    """Every file of a dump, or of the moments that stand for it."""
    whole = CONFIG.contributions.level != "moments"
    return store_inputs(model, dataset) if whole else moment_files(model, dataset)


def all_dumps():
    """Every file of every dump: named as targets, so that one that was deleted is made again."""
    pairs = [(m, d) for m in CONFIG.models for d in CONFIG.contributions.datasets]
    return [path for model, dataset in pairs for path in dump_files(model, dataset)]


rule dumps:
    input:
        dumps=lambda wildcards: all_dumps(),
