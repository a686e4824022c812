# Moments: at level `moments`, what is kept in place of a dump. Reads the images of one shard at a
# time; writes contributions/{model}/{dataset}.moments/{shard}.safetensors with the means and
# covariances of the contributions' coordinates and a record of how they were made. When all shards
# are there, one job adds them up; scores, labels, roles and the hierarchy are made from the sums. Of
# the data set that maps are fitted on the targets are counted in, one shard's image embeddings at a
# time.

MOMENTS = f"{RESULTS}/contributions/{{model}}/{{dataset}}.moments"
MOMENT_TABLES = ["scores", "labels", "roles", "hierarchy"]


ruleorder: gather_moments > contributions_store
ruleorder: scores_of_moments > scores


def shard_splits(wildcards):
    """Table of the rows of one shard with their splits; those of a fit of maps where there is one."""
    checkpoints.manifest.get(dataset=wildcards.dataset)
    kind = "fits" if is_fit(wildcards) else "splits"
    return f"{RESULTS}/manifest/{wildcards.dataset}/{kind}/{wildcards.shard}.parquet"


def is_fit(wildcards):
    """Whether the maps of a model are fitted from its moments of a data set."""
    return MOMENT_FITS.get(wildcards.model) == wildcards.dataset


def shard_targets(wildcards):
    """Image embeddings of one shard and their record, where maps are fitted to them.

    The embeddings are judged by the hash in their record, which is small enough to be compared by
    content; Snakemake would go by the time of the large object.
    """
    base = f"{RESULTS}/features/{wildcards.dataset}"
    embeddings = shard_object(f"{base}.zarr", "features", "image_embeddings", wildcards.shard)
    record = f"{base}.shards/{wildcards.shard}.json"
    return [ancient(embeddings), record] if is_fit(wildcards) else []


def moment_files(model, dataset):
    """The moments of a data set and those of every shard."""
    base = f"{RESULTS}/contributions/{model}/{dataset}"
    shards = [f"{base}.moments/{shard}.safetensors" for shard in shards_of(dataset)]
    return [f"{base}.moments.safetensors", f"{base}.components.parquet", *shards]


rule moments:
    input:
        shard=shard_splits,
        targets=shard_targets,
        facts=f"{BASES}.json",
        bases=ancient(f"{BASES}.safetensors"),
    output:
        moments=f"{MOMENTS}/{{shard}}.safetensors",
        record=f"{MOMENTS}/{{shard}}.parquet",
    params:
        version=STAGE_VERSIONS["contributions"],
        model=lambda wildcards: model_facts(CONFIG.models[wildcards.model]),
        per=CONFIG.contributions.per,
        bias=CONFIG.contributions.bias,
        shard_size=CONFIG.contributions.shard_size,
    log:
        f"{RESULTS}/logs/moments/{{model}}/{{dataset}}/{{shard}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/moments/{{model}}/{{dataset}}/{{shard}}.tsv"
    threads: MODEL_THREADS
    resources:
        gpu=GPU,
    script:
        "../scripts/moments.py"


rule gather_moments:
    input:
        shards=lambda w: moment_files(w.model, w.dataset)[2:],
        records=lambda w: expand(f"{MOMENTS}/{{shard}}.parquet", **w, shard=shards_of(w.dataset)),
        manifest=f"{RESULTS}/manifest/{{dataset}}/images.parquet",
        facts=f"{BASES}.json",
        bases=ancient(f"{BASES}.safetensors"),
    output:
        moments=f"{MOMENTS}.safetensors",
        components=f"{DUMP}.components.parquet",
        manifest=f"{DUMP}.json",
    params:
        version=STAGE_VERSIONS["contributions"],
        tolerance=CONFIG.contributions.tolerance,
    log:
        f"{RESULTS}/logs/gather_moments/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/gather_moments/{{model}}/{{dataset}}.tsv"
    threads: 1
    script:
        "../scripts/gather_moments.py"


rule scores_of_moments:
    input:
        moments=lambda w: moment_files(w.model, w.dataset)[:2],
        facts=lambda wildcards: f"{RESULTS}/contributions/{wildcards.model}.bases.json",
        bases=ancient(f"{BASES}.safetensors"),
        maps=lambda wildcards: maps_of(wildcards.model),
        texts=lambda wildcards: texts_of(space_of(wildcards.model)),
    output:
        **{kind: f"{RESULTS}/scores/{{model}}/{{dataset}}.{kind}.parquet" for kind in MOMENT_TABLES},
    params:
        version=STAGE_VERSIONS["scores"],
        texts_per_component=lambda wildcards: CONFIG.scores.texts_per_component,
        method=lambda wildcards: CONFIG.scores.method,
        draws=2000,
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/scores_of_moments/{{model}}/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/scores_of_moments/{{model}}/{{dataset}}.tsv"
    threads: MODEL_THREADS
    script:
        "../scripts/scores_of_moments.py"
