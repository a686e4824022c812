"""Zero-shot segmentation with one model of one data set's masks (rule segmentation)."""

from _heads import map_classifier
from _job import job, load_run_model

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import image_root
from pipeline_lib.device import compute_device
from pipeline_lib.heatmaps import choose_images
from pipeline_lib.segmentation import Pair, methods, segment

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    asked, given = config.applications.segmentation, snakemake.input
    root = image_root(config, names["dataset"])
    manifest = read_table("manifest", given.manifest).query("active")
    model = load_run_model(config.models[names["model"]]).to(compute_device())
    classifier = map_classifier(model, manifest, given.store, given.manifest, given.texts)
    by_label = asked.directions == "label"
    needs = ["mask", "label"] if by_label else ["mask"]
    rows = choose_images(manifest, asked.split, needs, asked.images, config.seed)
    pairs = [Pair(root / r.path, root / r.mask, r.sha256) for r in rows.itertuples()]
    labels = rows["label"].tolist() if by_label else None
    table = segment(model, pairs, methods(model, classifier, labels), asked.protocols)
    facts = {"asked": asked.model_dump(), "seed": config.seed, "classifier": classifier.kind}
    write_table("segmentation", table.assign(**names), snakemake.output.table, facts)
