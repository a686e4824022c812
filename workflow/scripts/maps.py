"""Linear maps of one model to its CLIP space (rule maps)."""

import dataclasses

import numpy as np
import torch
from _job import job, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.coordinates import Source
from pipeline_lib.device import compute_device
from pipeline_lib.dumps import open_dump, open_features
from pipeline_lib.features import text_targets
from pipeline_lib.map_fits import MapFit, Settings, fit_maps
from pipeline_lib.maps import (
    applied_metrics,
    identity_maps,
    known_values,
    load_maps,
    save_maps,
    split_heldout,
    without_test,
)

with job(snakemake) as config:
    model, asked = snakemake.wildcards.model, snakemake.params
    settings = asked.settings
    dump = open_dump(store_folder(snakemake.input.store), snakemake.input.manifest)
    images, positions = dump.manifest, without_test(dump.manifest["split"])
    heldout, test = np.zeros(dump.n, dtype=bool), np.ones(dump.n, dtype=bool)
    ids = images["image_id"].iloc[positions].tolist()
    heldout[positions], test[positions] = split_heldout(ids, settings["heldout"], asked.seed), False
    if settings["method"] != "identity" and settings["target"] != "image":
        told = images[settings["target"].removesuffix("_text")].notna().to_numpy()
        kept = told | ~test  # a test image without a text cannot be measured
        images, heldout, test = images[kept], heldout[kept], test[kept]
    index = images.index.to_numpy()
    source = Source(dump.n, dump.contributions, precision=dump.precision, name=str(dump.path))
    source = source.at(index)
    if settings["method"] == "identity":
        targets = torch.from_numpy(dump.representation(index))
    elif settings["target"] == "image":
        features = open_features(store_folder(snakemake.input.images), snakemake.input.manifest)
        targets = torch.from_numpy(features.embeddings(index))
    else:
        texts = read_table("text_features", snakemake.input.texts)
        targets = text_targets(texts, images, settings["target"])
    if settings["method"] == "identity" or snakemake.input.given:
        maps = identity_maps(dump.width)
        if snakemake.input.given:
            maps = load_maps(*snakemake.input.given)
            maps.check_model(dump.attributes["weight_hash"])
        fit = MapFit(maps, applied_metrics(maps, source, targets, heldout, test))
    else:
        names = {field.name for field in dataclasses.fields(Settings)}
        fit = fit_maps(
            source,
            targets,
            heldout,
            test=test,
            method=settings["method"],
            baselines=settings["baselines"],
            settings=Settings(
                **{name: value for name, value in settings.items() if name in names},
                seed=asked.seed,
            ),
            device=str(compute_device()),
        )
    metrics = fit.metrics.assign(model=model, dataset=asked.dataset)
    facts = {
        "model": model,
        "weights": dump.attributes.get("weight_hash"),
        "dataset": asked.dataset,
        "settings": settings,
        "seed": asked.seed,
        "images": int(np.sum(~heldout & ~test)),
        "metrics": known_values(fit.metrics),
    }
    own = dict(fit.maps.facts)
    facts |= {"fitted": own} if snakemake.input.given else own
    maps = dataclasses.replace(fit.maps, facts=facts)
    save_maps(maps, snakemake.output.weights, snakemake.output.manifest)
    write_table("map_metrics", metrics, snakemake.output.metrics, {"settings": settings})
