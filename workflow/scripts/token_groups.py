"""Groups of source tokens of one model's strongest heads (rule token_groups)."""

import numpy as np
import torch
from _job import job, load_run_model

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import image_root
from pipeline_lib.decomposition import decompose
from pipeline_lib.device import compute_device
from pipeline_lib.features import embeddings_of
from pipeline_lib.heatmaps import choose_images, pixel_range
from pipeline_lib.labelling import Labeller
from pipeline_lib.maps import load_maps
from pipeline_lib.segmentation import Pair, load_pair
from pipeline_lib.token_groups import (
    WITH_MASKS,
    WITHOUT_MASKS,
    group_sums,
    token_group_table,
    token_groups,
)

BATCH = 16

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    asked, given = snakemake.params, snakemake.input
    root = image_root(config, names["dataset"])
    manifest = read_table("manifest", given.manifest).query("active")
    model = load_run_model(config.models[names["model"]]).to(compute_device())
    maps, texts = load_maps(*given.maps), read_table("text_features", given.texts)

    known = read_table("hierarchy", given.hierarchy).query("level == 'component' and rank == 0")
    components = read_table("components", given.components).merge(
        known.rename(columns={"node": "id"})[["id", "share"]], on="id"
    )
    heads = components[components["kind"] == "head"].nlargest(asked.heads, "share")
    masked = bool(manifest["mask"].notna().any())
    rows = choose_images(manifest, None, ["mask"] if masked else [], asked.images, config.seed)
    span = pixel_range(model.preprocess, model.input_size)
    sums = []
    for start in range(0, len(rows), BATCH):
        part = rows.iloc[start : start + BATCH]
        pairs = [
            Pair(root / row.path, root / row.mask if masked else None, row.sha256)
            for row in part.itertuples()
        ]
        loaded = [load_pair(model, pair, "V", span) for pair in pairs]
        images = torch.stack([image for image, _ in loaded]).to(compute_device())
        masks = np.stack([mask for _, mask in loaded]) if masked else None
        found = decompose(model, images, per="token", components=heads["id"].tolist())
        groups = token_groups(masks, len(part), found.token_index.start, found.grid)
        grouped = group_sums(found.values.detach().cpu(), groups, len(WITH_MASKS))
        which = heads["component"].tolist()
        weights = None if maps.weights is None else maps.weights.expand(len(components), -1, -1)
        sums.append(
            grouped if weights is None else torch.einsum("ncgd,cde->ncge", grouped, weights[which])
        )
    pool = texts[texts["use"] == "pool"]
    table = token_group_table(
        torch.cat(sums),
        heads,
        WITH_MASKS if masked else WITHOUT_MASKS,
        Labeller(asked.method, embeddings_of(texts, "pool")),
        pool["text"].tolist(),
        pool["feature"].tolist(),
        count=asked.texts,
    ).assign(**names)
    facts = {"images": len(rows), "heads": asked.heads, "seed": config.seed}
    write_table("hierarchy", table, snakemake.output.table, facts)
