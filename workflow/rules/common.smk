# What every other file of rules may use: the configuration, the run's folder, and the functions
# that name the files of a data set or a dump.
import functools
import os
from pathlib import Path

from snakemake.exceptions import WorkflowError

from pipeline_lib import config as settings
from pipeline_lib import listing
from pipeline_lib import manifest as manifests
from pipeline_lib.artifacts import STAGE_VERSIONS
from pipeline_lib.device import gpu_present
from pipeline_lib.errors import VitAtlasError
from pipeline_lib.store import shard_object

try:
    CONFIG = settings.load_config(config)
except VitAtlasError as error:
    raise WorkflowError(str(error)) from None

RESULTS = CONFIG.folder.as_posix()

# Jobs that run a model ask for a GPU where this machine has one (the profile says how many).
GPU = int(gpu_present())
MODEL_THREADS = 8 if GPU else 1


wildcard_constraints:
    model="|".join(CONFIG.models),
    dataset="|".join(CONFIG.datasets),
    shard=r"\d+",


def manifest_of(dataset):
    """The manifest of a data set."""
    return f"{RESULTS}/manifest/{dataset}/images.parquet"


def shards_of(dataset):
    """Numbers of the shards of a data set, once its manifest is there."""
    images = checkpoints.manifest.get(dataset=dataset).output.images
    folder = Path(images).parent / "shards"
    return sorted(int(path.stem) for path in folder.glob("*.parquet"))


def shard_rows(wildcards):
    """Table of the rows of one shard; written by the checkpoint `manifest`."""
    checkpoints.manifest.get(dataset=wildcards.dataset)
    return f"{RESULTS}/manifest/{wildcards.dataset}/shards/{wildcards.shard}.parquet"


def shard_objects(kind, store, arrays, dataset):
    """Files that hold the shards of a store."""
    return [shard_object(store, kind, name, s) for s in shards_of(dataset) for name in arrays]


def store_inputs(model, dataset):
    """All that reading a dump depends on; the first is the zarr.json in the store's folder."""
    store = f"{RESULTS}/contributions/{model}/{dataset}"
    objects = shard_objects("contributions", f"{store}.zarr", DUMP_ARRAYS, dataset)
    return [f"{store}.zarr/zarr.json", f"{store}.components.parquet", *objects]


def feature_inputs(dataset):
    """All that reading the image embeddings depends on; the first is the store's zarr.json."""
    store = f"{RESULTS}/features/{dataset}.zarr"
    return [f"{store}/zarr.json", *shard_objects("features", store, ["image_embeddings"], dataset)]


def space_of(model):
    """Name of the CLIP space that a model's contributions are read in."""
    return settings.space_of(CONFIG, model)


def section(part):
    """A part of the configuration as plain values, for `params`."""
    return part.model_dump(mode="json")


def model_facts(model):
    """What decides the results of a model: not where its files lie, but what is in them."""
    files = {path.name: hash_of(path) for path in settings.weight_files(model)}
    local = settings.local_folder(model.id) is not None
    return {
        "id": model.id.partition(":local-dir:")[0] if local else model.id,
        "files": files,
        "kwargs": model.kwargs,
    }


def hash_of(path):
    """Hash of a file's content, so that a copy or a touch of the file changes nothing."""
    facts = os.stat(path)
    return _hash_of(str(path), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=None)
def _hash_of(path, size, mtime):
    return manifests.file_hash(path)
