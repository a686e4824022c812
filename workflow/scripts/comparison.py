"""The models of a run side by side (rule comparison)."""

import logging
from pathlib import Path

import numpy as np
import pandas as pd
from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.comparison import (
    FEWEST,
    compared_images,
    comparison_table,
    counterpart_table,
    mapped_patterns,
    patterns,
)
from pipeline_lib.dumps import open_dump
from pipeline_lib.maps import load_maps

with job(snakemake):
    scores = pd.concat([read_table("scores", path) for path in snakemake.input.scores])
    write_table("comparison", comparison_table(scores), snakemake.output.table)

    maps = {Path(path).stem: Path(path).with_suffix("") for path in snakemake.input.maps}
    seen, names, images = {"geometry": {}, "mapped": {}}, {}, 0
    for path in snakemake.input.dumps:
        if not path.endswith(".zarr/zarr.json"):
            continue
        dump, model = (
            open_dump(store_folder([path]), snakemake.input.manifest),
            Path(path).parts[-3],
        )
        index = compared_images(dump.n)
        runs = np.split(index, np.flatnonzero(np.diff(index) > 1) + 1)
        names[model], images = dump.components["id"].tolist(), len(index)

        def read(components, dump=dump, runs=runs):
            """Contributions of components to the images compared, run by run."""
            return np.concatenate([dump.contributions(run, list(components)) for run in runs])

        if images >= FEWEST:
            fitted = load_maps(*(maps[model].with_suffix(end) for end in (".safetensors", ".json")))
            seen["geometry"][model] = patterns(read, len(names[model]), dump.width)
            seen["mapped"][model] = mapped_patterns(read, len(names[model]), fitted)
    if images < FEWEST:
        logging.warning("%d images are too few to compare components over", images)
    by_measure = [counterpart_table(seen[how], names).assign(measure=how) for how in seen]
    counterparts = pd.concat(by_measure).assign(dataset=snakemake.wildcards.dataset)
    write_table("counterparts", counterparts, snakemake.output.counterparts, {"images": images})
