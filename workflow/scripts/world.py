"""Renders a data set of the demo world (rule world)."""

from pathlib import Path

from _job import job

from pipeline_lib.world import write_spurious, write_world

with job(snakemake):
    folder = Path(snakemake.output.table).parent
    world = snakemake.params.world
    if world["source"] == "world":
        write_world(folder, world["count"], seed=world["seed"])
    else:
        train, test, seed = world["train"], world["test"], world["seed"]
        write_spurious(folder, train, test, seed=seed, object_scale=world["object_scale"])
