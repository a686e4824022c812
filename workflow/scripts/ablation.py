"""Accuracy of one model on one data set while components are mean-ablated (rule ablation)."""

import numpy as np
import pandas as pd
from _heads import read_head
from _job import job, load_run_model, store_folder

from pipeline_lib.ablation import ablation_curves, make_task, targets_of, with_intervals
from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.class_token import class_token_rows, class_token_shares, reads_class_token
from pipeline_lib.config import image_root
from pipeline_lib.dumps import open_dump
from pipeline_lib.errors import DataError
from pipeline_lib.images import image_batches

#: Images that are decomposed by token, of each of the two splits.
IMAGES = 128

with job(snakemake) as config:
    name, dataset = snakemake.wildcards.model, snakemake.wildcards.dataset
    asked, texts = config.applications.ablation, snakemake.input.texts
    dump = open_dump(store_folder(snakemake.input.store), snakemake.input.manifest, projected=True)
    own = asked.classifier in ("own", "auto") and dump.has_logits
    by_token = reads_class_token(dump.components)
    model = load_run_model(config.models[name]) if own or by_token else None
    head = read_head(model) if own else None
    table = read_table("text_features", texts) if texts else None
    options = (asked.classifier, asked.split, asked.reference_split, head, table)
    tasks = [make_task(dump, t, *options) for t in targets_of(dump.manifest, config.concepts)]
    read = [task.target for task in tasks if task.classifier.kind == "probe"]
    if read and not dump.is_whole:
        raise DataError(
            f"{read[0]} needs a probe, which reads other directions than contributions.level: "
            "projected keeps; name a classifier, or use level factored"
        )
    found = [ablation_curves(dump, tasks, seed=config.seed)]

    if by_token:
        weight = np.concatenate([task.classifier.weight for task in tasks])
        root, rng = image_root(config, dataset), np.random.default_rng(config.seed)

        def some(parts):
            """A draw of the images of all tasks, and what their heads take from the class token."""
            pool = np.unique(np.concatenate(parts))
            chosen = np.sort(rng.permutation(pool)[:IMAGES])
            rows = dump.manifest.iloc[chosen]
            files, hashes = [root / path for path in rows["path"]], list(rows["sha256"])
            batches = image_batches(files, model.preprocess, 32, hashes=hashes)
            return chosen, np.concatenate(
                [class_token_shares(model, i, weight) for _, i in batches]
            )

        index, shares = some([task.index for task in tasks])
        means = some([task.reference for task in tasks])[1].mean(axis=0)
        found.append(class_token_rows(tasks, index, dump.representation(index), shares, means))
    facts = {"asked": asked.model_dump(), "seed": config.seed}
    result = with_intervals(pd.concat(found, ignore_index=True))
    result = result.assign(model=name, dataset=dataset)
    write_table("ablation", result, snakemake.output.table, facts)
