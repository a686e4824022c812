"""The models of a run side by side (rule comparison)."""

import logging
from pathlib import Path

import pandas as pd
from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.comparison import (
    FEWEST,
    compared_contributions,
    compared_images,
    comparison_table,
    counterpart_table,
    patterns,
)
from pipeline_lib.dumps import open_dump
from pipeline_lib.maps import load_maps

with job(snakemake):
    scores = pd.concat([read_table("scores", path) for path in snakemake.input.scores])
    write_table("comparison", comparison_table(scores), snakemake.output.table)

    seen, names, images = {}, {}, 0
    for path in snakemake.input.dumps:
        if not path.endswith(".zarr/zarr.json"):
            continue
        dump, model = (
            open_dump(store_folder([path]), snakemake.input.manifest),
            Path(path).parts[-3],
        )
        names[model], images = dump.components["id"].tolist(), len(compared_images(dump.n))
        maps = load_maps(*(file for file in snakemake.input.maps if Path(file).stem == model))

        if images >= FEWEST:
            width = max(dump.width, len(maps.bias))
            read = compared_contributions(dump, maps)
            seen[model] = patterns(read, len(names[model]), width)
    if not seen:
        logging.warning("%d images are too few to compare components over", images)
    counterparts = counterpart_table(seen, names).assign(dataset=snakemake.wildcards.dataset)
    write_table("counterparts", counterparts, snakemake.output.counterparts, {"images": images})
