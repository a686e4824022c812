"""Lists the images of a data set (checkpoint manifest)."""

from pathlib import Path

from _job import job

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import image_root, moment_fits
from pipeline_lib.listing import list_images
from pipeline_lib.manifest import make_manifest, write_shards

with job(snakemake) as config:
    name, output = snakemake.wildcards.dataset, Path(snakemake.output.images)
    dataset, root = config.datasets[name], image_root(config, name)
    manifest, rejected = make_manifest(
        list_images(dataset, root),
        root,
        shard_size=snakemake.params.shard_size,
        shares=dataset.split,
        seed=snakemake.params.seed,
        bad_share=dataset.bad_share,
        previous=read_table("manifest", output) if output.exists() else None,
        workers=snakemake.threads,
    )
    facts = {"dataset": name, "shard_size": snakemake.params.shard_size, "seed": config.seed}
    write_table("rejected", rejected, snakemake.output.rejected, facts)
    write_shards(manifest, output.parent / "shards")
    if config.contributions.level == "moments":
        write_shards(manifest, output.parent / "splits", "shard_splits")
    if name in moment_fits(config).values():
        from pipeline_lib.maps import with_heldout  # here: others need not wait for PyTorch

        divided = with_heldout(manifest, config.maps.heldout, config.seed)
        write_shards(divided, output.parent / "fits", "shard_splits")
    write_table("manifest", manifest, output, facts)
