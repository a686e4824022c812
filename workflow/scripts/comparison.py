"""The models of a run side by side (rule comparison)."""

from pathlib import Path

import numpy as np
import pandas as pd
from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.comparison import comparison_table, counterpart_table, readings
from pipeline_lib.coordinates import Source
from pipeline_lib.dumps import open_dump
from pipeline_lib.features import embeddings_of
from pipeline_lib.maps import load_maps


def is_store(path):
    return path.endswith(".zarr/zarr.json")


with job(snakemake):
    dataset, asked = snakemake.wildcards.dataset, snakemake.params
    scores = pd.concat([read_table("scores", path) for path in snakemake.input.scores])
    write_table("comparison", comparison_table(scores), snakemake.output.table)

    spaces = {Path(path).stem: path for path in snakemake.input.texts}
    weights = {Path(path).stem: path for path in snakemake.input.maps if path.endswith("tensors")}
    stores = {Path(path).parts[-3]: path for path in snakemake.input.dumps if is_store(path)}
    said, names = {}, {}
    for model, space in asked.models.items():
        dump = open_dump(store_folder([stores[model]]), snakemake.input.manifest)
        chosen = np.unique(np.linspace(0, dump.n - 1, min(asked.images, dump.n)).astype(int))
        source = Source(dump.n, dump.contributions).at(chosen)
        texts = embeddings_of(read_table("text_features", spaces[space]), "concept")
        said[model] = readings(source, load_maps(weights[model]), texts)
        names[model] = dump.components["id"].tolist()
    counterparts = counterpart_table(said, names).assign(dataset=dataset)
    write_table(
        "counterparts", counterparts, snakemake.output.counterparts, {"images": len(chosen)}
    )
