# Manifest: which images a data set has. Reads the data set's files (or the rendered world) and the
# manifest of last time; writes manifest/{dataset}/images.parquet, rejected.parquet, and beside them
# shards/{shard}.parquet with what the dump of that shard depends on.
#
# A checkpoint, because how many shards there are depends on the images. It updates its output in
# place, and writes the files of those shards only that changed: these are no declared outputs, so
# that a dump sees their own times and contents.


def listing_params(dataset):
    """What decides the tables of a data set: at level `moments` the shards' splits are among them.

    Where maps are fitted from moments, so is the share of images held out of the fit.
    """
    splits = {"splits": True} if CONFIG.contributions.level == "moments" else {}
    if dataset in MOMENT_FITS.values():
        splits["heldout"] = CONFIG.maps.heldout
    return section(CONFIG.datasets[dataset]) | splits


checkpoint manifest:
    input:
        table=world_table,
    output:
        images=update(f"{RESULTS}/manifest/{{dataset}}/images.parquet"),
        rejected=f"{RESULTS}/manifest/{{dataset}}/rejected.parquet",
    params:
        version=STAGE_VERSIONS["manifest"],
        dataset=lambda wildcards: listing_params(wildcards.dataset),
        listing=lambda wildcards: listing.listing_fingerprint(
            CONFIG.datasets[wildcards.dataset], settings.image_root(CONFIG, wildcards.dataset)
        ),
        shard_size=CONFIG.contributions.shard_size,
        seed=CONFIG.seed,
    log:
        f"{RESULTS}/logs/manifest/{{dataset}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/manifest/{{dataset}}.tsv"
    threads: 2
    priority: 10
    script:
        "../scripts/manifest.py"
