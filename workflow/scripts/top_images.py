"""Finds the images on which each component writes most along its first text (rule top_images)."""

from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.dumps import open_dump
from pipeline_lib.maps import load_maps
from pipeline_lib.report.cards import top_images

with job(snakemake):
    table = top_images(
        open_dump(store_folder(snakemake.input.dump), snakemake.input.manifest),
        load_maps(*snakemake.input.maps),
        read_table("labels", snakemake.input.labels),
        read_table("text_features", snakemake.input.texts),
        snakemake.params.examples,
    )
    names = {name: snakemake.wildcards[name] for name in ("model", "dataset")}
    write_table("top_images", table.assign(**names), snakemake.output.table)
