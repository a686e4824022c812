"""Images of a data set that are like probe images of one's own, by one model (rule probes)."""

from pathlib import Path

import pandas as pd
from _job import job, load_run_model, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import image_root
from pipeline_lib.dumps import open_dump
from pipeline_lib.maps import load_maps
from pipeline_lib.questions import contributions_of, draw_grid
from pipeline_lib.search import alike

with job(snakemake) as config:
    name, dataset = snakemake.wildcards.model, snakemake.wildcards.dataset
    given, asked, made = snakemake.input, snakemake.params, snakemake.output
    dump = open_dump(store_folder(given.store), given.manifest)
    model, root, tables = load_run_model(config.models[name]), image_root(config, dataset), []
    known = [
        load_maps(*given.maps),
        read_table("text_features", given.texts),
        read_table("scores", given.scores),
        read_table("retrieval_choices", given.choices),
    ]
    for probe, picture in zip(given.probes, made.pictures, strict=True):
        own = contributions_of(model, probe, config.contributions, dump)[0]
        options = {"components": asked.components, "count": asked.shown, "seed": config.seed}
        found = alike(dump, *known, own, **options)
        rows = {
            str(f): [root / one for one in part["path"]] for f, part in found.groupby("feature")
        }
        draw_grid(rows, picture, probe)
        file = Path(picture).relative_to(Path(made.table).parent).as_posix()
        tables.append(found.assign(probe=str(probe), file=file, model=name, dataset=dataset))
    result = pd.concat(tables, ignore_index=True)
    write_table("retrieval_probes", result, made.table, {"seed": config.seed})
