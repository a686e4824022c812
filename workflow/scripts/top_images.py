"""The images of each component's card, with its token maps on the first ones (rule top_images)."""

from _job import job, load_run_model, store_folder

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.config import image_root
from pipeline_lib.device import compute_device
from pipeline_lib.dumps import open_dump
from pipeline_lib.images import read_image
from pipeline_lib.maps import load_maps
from pipeline_lib.report.cards import text_directions, top_images
from pipeline_lib.report.token_maps import component_token_maps

with job(snakemake) as config:
    names = {"model": snakemake.wildcards.model, "dataset": snakemake.wildcards.dataset}
    given, made = snakemake.input, snakemake.output
    dump = open_dump(store_folder(given.dump), given.manifest)
    labels, maps = read_table("labels", given.labels), load_maps(*given.maps)
    texts = read_table("text_features", given.texts)
    directions = text_directions(maps, labels, texts, len(dump.components))
    table = top_images(dump, labels, directions, snakemake.params.examples)
    write_table("top_images", table.assign(**names), made.table)

    model = load_run_model(config.models[names["model"]]).to(compute_device())
    root, files = image_root(config, names["dataset"]), dump.manifest.set_index("image_id")

    def read(image):
        """A picture of the data set, by its id."""
        return read_image(root / files["path"][image], files["sha256"][image])

    heats = component_token_maps(model, read, table, directions)
    write_table("token_maps", heats.assign(**names), made.maps)
