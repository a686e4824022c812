"""Which components vary over the images alike (rule similarity)."""

import logging
from pathlib import Path

from _job import job, store_folder

from pipeline_lib.artifacts import write_table
from pipeline_lib.comparison import (
    FEWEST,
    compared_contributions,
    compared_images,
    counterpart_table,
    patterns,
    similarity_table,
)
from pipeline_lib.dumps import open_dump
from pipeline_lib.maps import load_maps

with job(snakemake):
    seen, names, images = {}, {}, 0
    for path in snakemake.input.dumps:
        if not path.endswith(".zarr/zarr.json"):
            continue
        model = Path(path).parts[-3]
        dump = open_dump(store_folder([path]), snakemake.input.manifest)
        names[model], images = dump.components["id"].tolist(), len(compared_images(dump.n))
        maps = load_maps(*(file for file in snakemake.input.maps if Path(file).stem == model))
        if images >= FEWEST:
            width = max(dump.width, len(maps.bias))
            read = compared_contributions(dump, maps)
            seen[model] = patterns(read, len(names[model]), width)
    if not seen:
        logging.warning("%d images are too few to compare components over", images)
    for name, make in (("similarity", similarity_table), ("counterparts", counterpart_table)):
        table = make(seen, names).assign(dataset=snakemake.wildcards.dataset)
        write_table(name, table, snakemake.output[name], {"images": images})
