"""Token heat maps of some images by one model (rule heatmaps)."""

from pathlib import Path

import numpy as np
import torch
from _heads import map_classifier
from _job import job, load_run_model

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import image_root
from pipeline_lib.device import compute_device
from pipeline_lib.errors import DataError
from pipeline_lib.features import embeddings_of
from pipeline_lib.heatmaps import (
    Shown,
    choose_images,
    class_heatmaps,
    draw_heatmaps,
    pixel_range,
    seen_by_model,
    text_token_maps,
)
from pipeline_lib.maps import load_maps
from pipeline_lib.segmentation import Pair, load_pair

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    asked, given = config.applications.heatmaps, snakemake.input
    root = image_root(config, names["dataset"])
    manifest = read_table("manifest", given.manifest).query("active")
    model = load_run_model(config.models[names["model"]]).to(compute_device())

    needs = [name for name in ("mask",) if manifest[name].notna().any()]
    needs += ["label"] if asked.directions == "label" else []
    rows = choose_images(manifest, asked.split, needs, asked.images, config.seed)
    if len(rows) < asked.images:
        raise DataError(
            f"applications.heatmaps.images: {asked.images} are asked for, but {len(rows)} images "
            f"have {' and '.join(needs) or 'the split'}; ask for fewer, or set split: null"
        )
    pairs = [
        Pair(root / row.path, root / row.mask if isinstance(row.mask, str) else None, row.sha256)
        for row in rows.itertuples()
    ]
    span = pixel_range(model.preprocess, model.input_size)
    loaded = [load_pair(model, pair, "V", span) for pair in pairs]
    images = torch.stack([image for image, _ in loaded])

    if isinstance(asked.directions, str):
        classifier = map_classifier(model, manifest, given.store, given.manifest, given.texts)
        labels = rows["label"].tolist() if asked.directions == "label" else None
        maps, titles = class_heatmaps(model, images, classifier, labels)
        words = dict(zip(model.class_names or [], model.class_descriptions or [], strict=True))
        titles = [[words.get(name, name).split(",")[0] for name in row] for row in titles]
        unit = "contribution to the logit"
    else:
        texts = read_table("text_features", given.texts)
        wanted = embeddings_of(texts, "word", "heatmaps").numpy()
        neutral = embeddings_of(texts, "pool").mean(dim=0).numpy()
        maps = text_token_maps(model, images, load_maps(*given.maps), wanted, neutral)
        titles, unit = [list(asked.directions)] * len(rows), "contribution to the text"

    masks = np.stack([mask for _, mask in loaded])
    shown = Shown(rows["image_id"].tolist(), seen_by_model(images, span), masks, maps, titles)
    target = Path(snakemake.output.table)
    table = draw_heatmaps(shown, target.parent, names["dataset"], unit=unit).assign(**names)
    facts = {"asked": asked.model_dump(), "seed": config.seed}
    write_table("heatmaps", table, target, facts)
