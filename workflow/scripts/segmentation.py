"""Zero-shot segmentation with one model of one data set's masks (rule segmentation)."""

from pathlib import Path

import numpy as np
import torch
from _heads import map_classifier
from _job import job, load_run_model

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import image_root
from pipeline_lib.device import compute_device
from pipeline_lib.heatmaps import (
    choose_images,
    common_scale,
    draw_overlay,
    pixel_range,
    seen_by_model,
    upsample,
)
from pipeline_lib.segmentation import (
    Pair,
    choose_recipe,
    example_images,
    load_pair,
    methods,
    segment,
)

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    asked, given, made = config.applications.segmentation, snakemake.input, snakemake.output
    root = image_root(config, names["dataset"])
    manifest = read_table("manifest", given.manifest).query("active")
    model = load_run_model(config.models[names["model"]]).to(compute_device())
    classifier = map_classifier(model, manifest, given.store, given.manifest, given.texts)
    needs = ["mask", "label"] if asked.directions == "label" else ["mask"]

    def pairs_of(split, count):
        """Pictures with masks of a split, their ids, and their labels where these are used."""
        rows = choose_images(manifest, split, needs, count, config.seed)
        pairs = [Pair(root / r.path, root / r.mask, r.sha256) for r in rows.itertuples()]
        labels = rows["label"].tolist() if "label" in needs else None
        return pairs, rows["image_id"].tolist(), labels

    first = asked.protocols[0]
    pairs, _, labels = pairs_of(asked.choose_split, max(1, asked.images // 2))
    recipe, choices = choose_recipe(model, pairs, classifier, first, labels)
    pairs, ids, labels = pairs_of(asked.split, asked.images)
    ways = methods(model, classifier, recipe, labels)
    found = segment(model, pairs, ways, asked.protocols, image_ids=ids)

    target = Path(made.table)
    examples = example_images(found.images.query("protocol == @first"))
    places = [ids.index(name) for name in examples["image_id"]]
    span = pixel_range(model.preprocess, model.input_size)
    loaded = [load_pair(model, pairs[place], first, span) for place in places]
    images = torch.stack([image for image, _ in loaded])
    maps = upsample(ways["decomposition"](images, np.array(places)), model.input_size)
    shown = seen_by_model(images, span)
    examples["file"] = [f"{names['dataset']}/{place}.png" for place in examples["place"]]
    for row, heat, picture, (_, mask) in zip(
        examples.itertuples(), maps, shown, loaded, strict=True
    ):
        title = f"{row.place}: IoU {row.iou_object:.2f}"
        scale, path = common_scale(heat), target.parent / row.file
        draw_overlay(picture, heat, scale, path, title=title, mask=mask, unit="evidence")

    facts = {"asked": asked.model_dump(), "seed": config.seed, "classifier": classifier.kind}
    facts["recipe"] = recipe.name
    write_table("segmentation", found.table.assign(**names), target, facts)
    write_table("segmentation_images", found.images.assign(**names), made.images, facts)
    write_table("segmentation_choices", choices.assign(**names), made.choices, facts)
    write_table("segmentation_examples", examples.assign(**names), made.examples, facts)
