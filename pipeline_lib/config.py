"""The configuration file: its schema, its checks, and the few questions asked of it.

One YAML file says what to run (how to run it is a Snakemake profile). `load_config` reads it and
reports every problem of the file at once. Nothing here imports torch, because every Snakemake
job reads the configuration first.

In any text of the file `${name}` stands for the entry `name` of `paths`, for the folder of this
project (`${project}`), or for an environment variable; `${name:-other}` gives a value for when it
is none of these. Relative paths start at the working folder.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline_lib.errors import ConfigError, close_matches

Split = Literal["train", "val", "test"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Texts = Annotated[list[str], Field(min_length=1)]

#: Rows of one inner chunk of a store: the unit that is read and decompressed.
MAX_CHUNK_ROWS = 64


#: Images of one job where the numbers of every image are kept: they are held in memory.
MAX_SHARD_ROWS = 100_000

#: What a level that does not keep every image's contributions still allows.
ALLOWED = {
    "projected": ("maps", "applications.ablation", "applications.heatmaps",
                  "applications.segmentation"),
    "moments": ("maps", "scores", "applications.heatmaps", "applications.segmentation"),
}  # fmt: skip

#: Text pools that timm carries: names and definitions of the 1,000 classes of ImageNet.
IMAGENET_POOLS = ("imagenet:lemmas", "imagenet:definitions")


class _Section(BaseModel):
    """A section of the file; keys that are not declared are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        str_strip_whitespace=True,
        use_attribute_docstrings=True,
    )


class SplitShares(_Section):
    """Shares of the images in each split, where the data set names none itself."""

    train: Share = 0.6
    """Share of the images to fit on."""
    val: Share = 0.2
    """Share of the images to choose settings on."""
    test: Share = 0.2
    """Share of the images to report on."""


class _DataSet(_Section):
    bad_share: Share = 0.0
    """Share of unreadable images above which the run fails, with their list."""
    split: SplitShares = SplitShares()
    """How images are divided where the data set does not say: by a hash of their id."""


class WorldData(_DataSet):
    """Rendered images with independent factors."""

    source: Literal["world"]
    """Pictures of the demo world, rendered by the run."""
    count: Count
    """Number of pictures."""
    seed: int = Field(0, ge=0)
    """Of the pictures."""


class SpuriousWorldData(_DataSet):
    """Rendered images whose class follows the scene in training, and not in the test images."""

    source: Literal["world_spurious"]
    """Pictures of the demo world with a spurious cue, rendered by the run."""
    train: Count
    """Pictures in which the class follows the scene in 95 % of the cases."""
    test: Count
    """Pictures in which the four groups are equally frequent; half as many again for `val`."""
    object_scale: Annotated[float, Field(ge=0.2, le=1.0)] = 0.6
    """Factor of the objects' radii: small ones are harder to tell than the scene."""
    seed: int = Field(0, ge=0)
    """Of the pictures."""


class FolderData(_DataSet):
    """A folder with one folder of images for each class."""

    source: Literal["folder"]
    """A folder with one folder of images for each class."""
    path: str
    """The folder."""
    class_names: str | None = None
    """Text file: name of a class folder, a space, name of the class."""


class Fields(_Section):
    """Which column holds what; `group` may join several columns."""

    id: str | None = None
    """Column of the id; the path where there is none."""
    label: str | None = None
    """Column of the label."""
    split: str | None = None
    """Column that holds `train`, `val` or `test`."""
    group: str | list[str] | None = None
    """Column of the group (class and cue), or several that are joined."""
    mask: str | None = None
    """Column of the mask of the object, or of its path."""
    caption: str | None = None
    """Column of the caption."""


class Columns(Fields):
    """Which column of a table holds what; `group` may join several columns."""

    path: str
    """Column of the path of each image, relative to the table; it may lead into a tar file."""


class TarFields(Fields):
    """Which member of a sample holds what: `EXT`, `json.KEY`, or `__key__`."""

    image: str | None = None
    """Ending of the image's name; null: the one that is an image's."""


class RowFields(Fields):
    """Which column of a Hugging Face data set holds what."""

    image: str = "image"
    """Column of the images."""


class _Columned(_DataSet):
    factors: list[str] = []
    """Further columns to carry along."""
    values: dict[str, dict[str, str]] = {}
    """Column, then value in the table, then value to use in its place."""

    @field_validator("values", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        """YAML reads 0 and 1 as numbers; a table's values are compared as text."""
        if not isinstance(value, Mapping):
            return value
        return {
            column: {str(old): str(new) for old, new in pairs.items()}
            if isinstance(pairs, Mapping)
            else pairs
            for column, pairs in value.items()
        }


class TableData(_Columned):
    """A CSV or Parquet table that names the images; paths are relative to its folder."""

    source: Literal["table"]
    """A CSV or Parquet table that names the images."""
    path: str
    """The table."""
    columns: Columns
    """Which column holds what."""


class WebDatasetData(_Columned):
    """Tar files of samples: members whose names share all but what follows the first dot."""

    source: Literal["webdataset"]
    """Tar files of WebDataset's layout; images are read in place."""
    path: str
    """A tar file (not compressed), or a folder of them."""
    columns: TarFields = TarFields()
    """Which member holds what."""
    class_names: str | None = None
    """Text file: label as the samples have it, a space, name of the class."""


class HuggingFaceData(_Columned):
    """A Hugging Face data set on disk; labels of classes are read by their names."""

    source: Literal["huggingface"]
    """A folder that `datasets` saved (`save_to_disk`); images are read in place."""
    path: str
    """The folder; where it holds splits, all of them are read, `validation` as `val`."""
    columns: RowFields = RowFields()
    """Which column holds what."""


DataSet = Annotated[
    WorldData | SpuriousWorldData | FolderData | TableData | WebDatasetData | HuggingFaceData,
    Field(discriminator="source"),
]


class ReferenceTexts(_Section):
    """Text embeddings that are at hand without the model that made them."""

    embeddings: str
    """A `.npy` file with one unit vector for each name, as rows or as columns."""
    names: str
    """A text file with one name a line, or a table."""
    column: str | None = None
    """Column of the names, where `names` is a CSV or Parquet table."""


class Reference(_Section):
    """The CLIP whose space the maps point to: a model, or only its text embeddings."""

    id: str | None = None
    """`open_clip:NAME/TAG` or `open_clip:local-dir:FOLDER`."""
    weights: str | None = None
    """Local file of weights (safetensors, or a pickle of tensors only)."""
    kwargs: dict[str, Any] = {}
    """Further arguments of the library that makes the model."""
    texts: ReferenceTexts | None = None
    """Text embeddings in place of a model."""


class Model(_Section):
    """A model to decompose."""

    id: str
    """`timm:NAME`, `open_clip:NAME/TAG`, either with `local-dir:FOLDER`."""
    weights: str | None = None
    """Local file of weights (safetensors, or a pickle of tensors only)."""
    kwargs: dict[str, Any] = {}
    """Further arguments of the library that makes the model."""


class Contributions(_Section):
    """The dumps of per-component contributions."""

    datasets: Annotated[list[str], Field(min_length=1)]
    """Data sets to dump."""
    per: Literal["layer", "head"] = "head"
    """Finest components: attention heads, or whole attention blocks."""
    bias: Literal["separate", "even"] = "separate"
    """One component for all constants, or constants shared evenly (as published)."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of the stored contributions; what it loses is recorded for every image."""
    level: Literal["full", "factored", "projected", "moments"] = "factored"
    """What is kept of every image: all numbers; the same as coordinates in bases of the components;
    its products with the texts and classes of the run; nothing, but means and covariances."""
    shard_size: Annotated[int, Field(ge=1, le=10_000_000)] = 500
    """Images of one job, and of one file of the store; above 100000 with level `moments` only."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 64
    """Images at a time; changes no result."""
    tolerance: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0e-5
    """Relative error of the sum above which a job fails."""

    @property
    def is_whole(self) -> bool:
        """Whether every image's contributions can be had again from what is kept."""
        return self.level in ("full", "factored")


MapMethod = Literal["compalign", "cosine", "ridge", "anchored", "shared", "procrustes"]


class Maps(_Section):
    """The linear maps from contributions to the CLIP space."""

    dataset: str
    """Data set that the maps are fitted on."""
    target: Literal["image", "label_text", "caption_text"] = "image"
    """Image embeddings of the reference CLIP, or text embeddings of the labels or captions."""
    given: str | None = None
    """Folder of maps of another run (its `maps`), applied as they are; null: maps are fitted."""
    method: MapMethod = "anchored"
    """Which maps the later stages use; from moments `ridge` alone is fitted."""
    orthogonality: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight λ of the orthogonality of the published objective."""
    learning_rate: Annotated[float, Field(gt=0.0)] = 3.0e-4
    """Of Adam."""
    max_epochs: Count = 50
    """Passes over the training images at most."""
    patience: Count = 5
    """Passes without a better held-out cosine before the fit stops."""
    heldout: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """Share of the training images kept aside to stop on."""
    baselines: list[MapMethod] = []
    """Other maps, fitted on the same images for the table."""


class Scores(_Section):
    """Scores of components for features, and the text labels of components."""

    dataset: str
    """Data set that components are scored on."""
    texts_per_component: Count = 10
    """Texts of each component that are looked for."""
    method: Literal["textspan", "omp", "nonnegative", "published"] = "textspan"
    """TextSpan, corrected or as published; matching pursuit, or that with amounts of at least 0."""
    token_heads: Annotated[int, Field(ge=0)] = 0
    """Strongest heads that are opened further by their tokens on and off the object; 0: none."""


class Ablation(_Section):
    """Accuracy while components are replaced by their means."""

    dataset: str
    """Data set of the curves."""
    reference_split: Split | None = "train"
    """Images whose mean replaces a component; null: all."""
    split: Split | None = "test"
    """Images that are judged; null: all."""
    classifier: Literal["own", "zero_shot", "probe", "auto"] = "auto"
    """The model's own classifier, CLIP zero-shot, a linear probe, or what the model has."""


class Retrieval(_Section):
    """Retrieval by one property, asked by text and by image."""

    dataset: str
    """Data set that is searched."""
    split: Split | None = "test"
    """Images that are searched; null: all."""
    components: Count | None = None
    """Components of a property that are summed; null: chosen on `choose_split`."""
    candidates: Annotated[list[Count], Field(min_length=1)] = [1, 2, 4, 8, 16, 32]
    """Numbers of components to choose from."""
    choose_split: Split = "val"
    """Images to choose the number of components on."""
    k: Annotated[list[Count], Field(min_length=1)] = [1, 5, 10]
    """Ranks of the precision."""
    queries: Count = 50
    """Probe images."""
    probes: list[str] = []
    """Image files of one's own: for each of them and each property the images like it are shown."""


class Heatmaps(_Section):
    """Token heat maps of some images."""

    dataset: str
    """Data set to choose images from."""
    split: Split | None = "test"
    """Images to choose from; null: all."""
    images: Count = 6
    """Number of images."""
    directions: Literal["label", "predicted"] | Texts = "label"
    """What maps are drawn for: the label, the predicted class, or texts."""


class Segmentation(_Section):
    """Zero-shot segmentation from token heat maps."""

    dataset: str
    """Data set with masks."""
    split: Split | None = "test"
    """Images to choose from; null: all."""
    images: Count = 100
    """Number of images."""
    choose_split: Split = "val"
    """Images to choose on how signed maps become one: half as many as `images`."""
    protocols: Annotated[list[Literal["C", "V"]], Field(min_length=1)] = ["C", "V"]
    """Protocol of Chefer et al. (C), of Balasubramanian et al. (V)."""
    directions: Literal["label", "predicted"] = "label"
    """What maps are drawn for."""


class Spurious(_Section):
    """Mean-ablation of the components that carry a spurious cue."""

    dataset: str
    """Data set with groups."""
    spurious_words: Texts
    """Words of the cue."""
    core_words: Texts
    """Words of what the class means."""
    top_k: Count | None = None
    """Components to ablate; null: chosen on `select_split`, at most `max_k`."""
    max_k: Count = 10
    """Most components to ablate, where their number is chosen."""
    select_split: Split = "val"
    """Images to choose the components, and their number, on."""
    report_split: Split = "test"
    """Images to report on."""
    draws: Count = 20
    """Draws of random components, as a control."""
    seeds: Count = 20
    """Redraws of the images to fit and to choose on, for the intervals."""


class Codes(_Section):
    """Sparse concept codes: images as short lists of texts."""

    dataset: str
    """Data set whose images are written as texts."""
    split: Split | None = "test"
    """Images to write as texts; null: all."""
    texts: Count = 5
    """Most texts of an image."""
    shown: Count = 24
    """Images in the table with their carriers."""
    carriers: Count = 3
    """Components named for each text."""


class Applications(_Section):
    """What is done with the dumps; an application that is null is not run."""

    ablation: Ablation | None = None
    """Mean-ablation curves."""
    retrieval: Retrieval | None = None
    """Retrieval by one property."""
    heatmaps: Heatmaps | None = None
    """Token heat maps."""
    segmentation: Segmentation | None = None
    """Zero-shot segmentation."""
    spurious: Spurious | None = None
    """Removal of a spurious cue."""
    codes: Codes | None = None
    """Sparse concept codes."""


class Report(_Section):
    """The page at the end."""

    title: str = "vit-atlas"
    """Heading of the page."""
    examples: Count = 8
    """Examples shown in a gallery."""


class RunConfig(_Section):
    """A whole configuration file, checked."""

    run: Name
    """Name of the run: its folder in `results`."""
    results: str = "results"
    """Folder of all runs."""
    seed: int = Field(0, ge=0)
    """Of everything random."""
    paths: dict[str, str] = {}
    """Names to use as `${name}` in any text of the file."""
    reference: Reference | None = None
    """The CLIP whose space the maps point to."""
    datasets: Annotated[dict[Name, DataSet], Field(min_length=1)]
    """Name to data set."""
    models: Annotated[dict[Name, Model], Field(min_length=1)]
    """Name to model."""
    concepts: dict[str, Texts] = {}
    """Feature to its descriptors; or the path of a YAML file of them."""
    templates: str | None = None
    """Text file with one prompt template with `{}` a line; null: the bare text."""
    text_pool: str | Texts | None = None
    """Files with `category<TAB>text` a line (or a text; the file's name is the category of all), or
    `imagenet:lemmas`; null: texts of `reference`."""
    contributions: Contributions
    """The dumps of contributions."""
    maps: Maps | None = None
    """Maps to CLIP space; null: none."""
    scores: Scores | None = None
    """Scores and labels; null: none."""
    applications: Applications = Applications()
    """What is done with the dumps."""
    report: Report = Report()
    """Heading of the page, and how much it shows."""

    @property
    def folder(self) -> Path:
        """Folder of everything this run makes."""
        return Path(self.results) / self.run


def load_config(source: Mapping[str, Any] | str | Path, *, check_files: bool = True) -> RunConfig:
    """The configuration in a YAML file, or in a mapping read from one.

    Parameters
    ----------
    source
        Path of the file, or its content.
    check_files
        Whether the files and folders that are named must exist and have the columns named.

    Raises
    ------
    ConfigError
        With every problem of the file: its dotted place, what is wrong, what would be valid.
    """
    where = "the configuration"
    if not isinstance(source, Mapping):
        where, source = str(source), _read_yaml(Path(source))
    problems: list[str] = []
    raw = _substitute(source, problems)
    if isinstance(raw.get("concepts"), str):
        raw["concepts"] = _read_concepts(raw["concepts"], problems)
    config = None
    try:
        config = RunConfig.model_validate(raw)
    except ValidationError as error:
        problems += [_worded(details) for details in error.errors()]
    problems += _name_problems(raw) + _model_problems(raw) + _value_problems(raw)
    problems += _level_problems(raw)
    if check_files:
        problems += _file_problems(raw) + _pool_problems(raw)
    if problems or config is None:
        listing = "\n  - ".join(dict.fromkeys(problems))
        count = len(dict.fromkeys(problems))
        raise ConfigError(f"{where} has {count} problem{'s' * (count != 1)}:\n  - {listing}")
    return config


def is_clip(model_id: str) -> bool:
    """Whether a model id names a model with a text tower."""
    return model_id.startswith("open_clip:")


def space_of(config: RunConfig, model: str) -> str | None:
    """Name of the CLIP space that a model's contributions are read in.

    A CLIP model's space is its own, under the model's name; any other model is mapped to the
    space named `reference`; `None` where the run has no reference.
    """
    if is_clip(config.models[model].id):
        return model
    return "reference" if config.reference is not None else None


def moment_fits(config: RunConfig) -> dict[str, str]:
    """Models whose maps are fitted from moments, each with the data set of the fit."""
    maps = config.maps
    if config.contributions.level != "moments" or maps is None or maps.given is not None:
        return {}
    return {name: maps.dataset for name, model in config.models.items() if not is_clip(model.id)}


def image_root(config: RunConfig, dataset: str) -> Path:
    """Folder that the paths of a data set's manifest are relative to."""
    section = config.datasets[dataset]
    if isinstance(section, FolderData | HuggingFaceData):
        return Path(section.path)
    if isinstance(section, TableData):
        return Path(section.path).parent
    if isinstance(section, WebDatasetData):
        return Path(section.path).parent if section.path.endswith(".tar") else Path(section.path)
    return config.folder / "world" / dataset


def chunk_rows(shard_size: int) -> int:
    """Rows of an inner chunk: the largest divisor of the shard's rows up to `MAX_CHUNK_ROWS`.

    >>> chunk_rows(500)
    50
    """
    return max(rows for rows in range(1, MAX_CHUNK_ROWS + 1) if shard_size % rows == 0)


def local_folder(model_id: str) -> Path | None:
    """Folder of a model that is kept in a folder (`timm:local-dir:PATH`), else `None`."""
    _, found, path = model_id.partition(":local-dir:")
    return Path(path) if found else None


def weight_files(model: Model | Reference) -> list[Path]:
    """Local files that decide what a model computes; empty where it is downloaded by name."""
    files = [] if model.weights is None else [Path(model.weights)]
    folder = local_folder(model.id or "")
    if folder is not None:
        files += sorted(path for path in folder.iterdir() if not _is_note(path))
    return files


def _is_note(path: Path) -> bool:
    """Whether a file beside a model's weights only tells of them."""
    return path.name.startswith(".") or path.suffix == ".md" or path.name == "metrics.json"


@lru_cache
def known_models(library: str) -> frozenset[str]:
    """Model names that `timm` or `open_clip` knows, found without importing it (nor torch).

    Empty where the library is not installed; loading the model then says what is missing.
    """
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        return frozenset()
    package = Path(spec.origin).parent
    if library == "open_clip":
        return frozenset(path.stem for path in (package / "model_configs").glob("*.json"))
    pattern = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)
    sources = (path.read_text("utf-8") for path in (package / "models").glob("*.py"))
    return frozenset(name for text in sources for name in pattern.findall(text))


# Reading and substitution


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} must hold keys and values, as config/demo.yaml does")
    return content


def _read_concepts(path: str, problems: list[str]) -> Any:
    try:
        return _read_yaml(Path(path))
    except ConfigError as error:
        problems.append(f"concepts: {error}")
        return {}


def _substitute(source: Mapping[str, Any], problems: list[str]) -> dict[str, Any]:
    """`source` with every `${name}` replaced; a plain copy that may be changed."""
    pattern = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
    known = {"project": str(Path(__file__).resolve().parents[1]), **os.environ}

    def filled(value: Any, place: str) -> Any:
        if isinstance(value, Mapping):
            return {key: filled(item, f"{place}.{key}".strip(".")) for key, item in value.items()}
        if isinstance(value, list):
            return [filled(item, f"{place}.{i}") for i, item in enumerate(value)]
        if not isinstance(value, str):
            return value

        def replaced(match: re.Match[str]) -> str:
            name, otherwise = match.groups()
            if known.get(name) or otherwise is not None:
                return known.get(name) or otherwise
            valid = [*paths, "project"]
            problems.append(
                f"{place}: ${{{name}}} is neither an entry of paths nor an environment variable; "
                + close_matches(name, valid)
            )
            return match.group(0)

        return pattern.sub(replaced, value)

    given = source.get("paths")
    paths: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    for name, path in paths.items():
        known[str(name)] = str(filled(path, f"paths.{name}"))
    return filled(source, "")


# Wording of the schema's complaints


def _steps(location: tuple[int | str, ...]) -> Iterator[tuple[str | None, Any]]:
    """Steps of a pydantic location: the word to show (or none) and the type found there."""
    kind: Any = RunConfig
    for step in location:
        if step == "[key]":  # pydantic's way to say that the key itself is wrong
            continue
        kind = _without_none(kind)
        origin = get_origin(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(str(step))
            kind = field.annotation if field else None
            if field and field.discriminator:
                kind = Annotated[kind, field]
            yield str(step), kind
        elif origin is dict:
            kind = get_args(kind)[1]
            yield str(step), kind
        elif origin in (Union, UnionType):  # the tag of a union: no key of the file
            kind = next((k for k in get_args(kind) if _tag(k) == step), None)
            yield None, kind
        elif origin is list:
            kind = get_args(kind)[0]
            yield str(step), kind
        else:
            yield str(step), None


def _without_none(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (Union, UnionType):
        rest = [option for option in get_args(kind) if option is not type(None)]
        return _without_none(rest[0]) if len(rest) == 1 else kind
    return kind


def _tag(kind: Any) -> str | None:
    field = getattr(kind, "model_fields", {}).get("source")
    return get_args(field.annotation)[0] if field else getattr(kind, "__name__", None)


def _worded(details: Any) -> str:
    """One complaint of pydantic as `place: what is wrong; what would be valid`."""
    steps = list(_steps(details["loc"]))
    place = ".".join(word for word, _ in steps if word is not None) or "the file"
    given = details.get("input")
    if details["type"] == "extra_forbidden":
        kinds: list[Any] = [RunConfig, *(kind for _, kind in steps[:-1])]
        parent = _without_none(kinds[-1])
        return f"{place}: unknown key; {close_matches(steps[-1][0] or '', parent.model_fields)}"
    if details["type"] == "missing":
        return f"{place}: is missing"
    if details["type"] == "too_short":
        return f"{place}: is empty; give at least {details['ctx']['min_length']}"
    if details["type"] in ("literal_error", "union_tag_invalid"):
        context = details["ctx"]
        valid = re.findall(r"'([^']*)'", context.get("expected") or context.get("expected_tags"))
        given = context.get("tag", given)
        return f"{place}: {given!r} is not valid; {close_matches(str(given), valid)}"
    if details["type"] == "string_pattern_mismatch":
        return f"{place}: {given!r} is not valid; use letters, digits, _ and -"
    return f"{place}: {details['msg']} (given: {given!r})"


# Checks beyond the schema; on the raw content, so that they run whatever else is wrong


def _at(raw: Any, *keys: str) -> Any:
    for key in keys:
        raw = raw.get(key) if isinstance(raw, Mapping) else None
    return raw


def _keys(raw: Any, key: str) -> list[str]:
    section = _at(raw, key)
    return [str(name) for name in section] if isinstance(section, Mapping) else []


def _name_problems(raw: Mapping[str, Any]) -> list[str]:
    """Names of data sets that are used but not declared, or used but not dumped."""
    declared = _keys(raw, "datasets")
    dumped = _at(raw, "contributions", "datasets")
    dumped = [str(name) for name in dumped] if isinstance(dumped, list) else []
    problems = [
        f"contributions.datasets: {name!r} is not in datasets; {close_matches(name, declared)}"
        for name in dumped
        if name not in declared
    ]
    needs_dump = ["maps", "scores"] + [f"applications.{key}" for key in Applications.model_fields]
    for place in needs_dump:
        name = _at(raw, *place.split("."), "dataset")
        if not isinstance(name, str):
            continue
        if name not in declared:
            problems.append(
                f"{place}.dataset: {name!r} is not in datasets; {close_matches(name, declared)}"
            )
        elif name not in dumped and place.rpartition(".")[2] not in ("heatmaps", "segmentation"):
            problems.append(
                f"{place}.dataset: {name!r} is not dumped; add it to contributions.datasets"
            )
    if "reference" in _keys(raw, "models"):
        problems.append("models.reference: this name is kept for the reference; choose another")
    return problems


def _model_problems(raw: Mapping[str, Any]) -> list[str]:
    """Model ids that no library knows, and references that do not fit what is asked of them."""
    ids = {f"models.{name}.id": _at(raw, "models", name, "id") for name in _keys(raw, "models")}
    reference = _at(raw, "reference")
    problems = []
    if isinstance(reference, Mapping):
        has_id, has_texts = reference.get("id") is not None, reference.get("texts") is not None
        if has_id == has_texts:
            problems.append("reference: give either id (a CLIP model) or texts, not both or none")
        if has_id and not str(reference["id"]).startswith("open_clip:"):
            problems.append(f"reference.id: {reference['id']!r} is no open_clip: id, so no CLIP")
        if has_texts and _at(raw, "maps", "target") in (None, "image") and raw.get("maps"):
            problems.append(
                "maps.target: 'image' needs the reference's image tower (reference.id); "
                "with reference.texts use label_text"
            )
        ids["reference.id"] = reference.get("id")
    for place, model_id in ids.items():
        if isinstance(model_id, str):
            problems += [f"{place}: {problem}" for problem in _id_problems(model_id)]
    mapped = [p for p, i in ids.items() if isinstance(i, str) and not is_clip(i)]
    if reference is None and (raw.get("maps") or raw.get("scores")) and mapped:
        problems.append(f"reference: is missing, but {mapped[0]} is no CLIP and must be mapped")
    return problems


def _id_problems(model_id: str) -> list[str]:
    library, colon, rest = model_id.partition(":")
    if not colon or library not in ("timm", "open_clip") or not rest:
        return [
            f"{model_id!r} is not a model id; valid: timm:NAME, open_clip:NAME/TAG, "
            "timm:local-dir:FOLDER, open_clip:local-dir:FOLDER"
        ]
    if rest.startswith(("local-dir:", "hf-hub:", "hf_hub:")):
        return []
    name = rest.partition("." if library == "timm" else "/")[0]
    known = known_models(library)
    if known and name not in known:
        return [f"{library} has no model {name!r}; {close_matches(name, known)}"]
    return []


def _value_problems(raw: Mapping[str, Any]) -> list[str]:
    """Values that are fine one by one and not together."""
    problems = []
    for name in _keys(raw, "datasets"):
        split = _at(raw, "datasets", name, "split")
        if isinstance(split, Mapping):
            shares = [split.get(key, 0.0) for key in SplitShares.model_fields]
            if all(isinstance(s, int | float) for s in shares) and abs(sum(shares) - 1.0) > 1e-6:
                problems.append(
                    f"datasets.{name}.split: the shares sum to {sum(shares):g}; they must sum to 1"
                )
    size = _at(raw, "contributions", "shard_size")
    if isinstance(size, int) and size > MAX_CHUNK_ROWS and chunk_rows(size) < MAX_CHUNK_ROWS // 4:
        fitting = max(MAX_CHUNK_ROWS, round(size / MAX_CHUNK_ROWS) * MAX_CHUNK_ROWS)
        problems.append(
            f"contributions.shard_size: {size} has no divisor from {MAX_CHUNK_ROWS // 4} to "
            f"{MAX_CHUNK_ROWS} to be the rows of a chunk; use for example {fitting}"
        )
    concepts = _at(raw, "concepts")
    lists: list[tuple[str, ...]] = [("concepts", name) for name in _keys(raw, "concepts")]
    lists += [("applications", "spurious", f"{use}_words") for use in ("spurious", "core")]
    for place in [*lists, ("applications", "heatmaps", "directions")]:
        problems += _text_problems(".".join(place), _at(raw, *place))
    if raw.get("scores") and isinstance(concepts, Mapping) and not concepts:
        problems.append("concepts: is empty, but scores are asked for")
    return problems


def _text_problems(place: str, texts: Any) -> list[str]:
    """Texts of a list that are blank, or stand twice but for case and spaces."""
    problems, seen = [], dict[str, str]()
    for number, text in enumerate(texts if isinstance(texts, list) else []):
        alike = " ".join(str(text).split()).casefold()
        if not alike:
            problems.append(f"{place}.{number}: {text!r} is blank; give a text, or leave it out")
        elif alike in seen:
            as_before = "" if text == seen[alike] else f", first as {seen[alike]!r}"
            problems.append(f"{place}: {text!r} stands twice{as_before}; leave one out")
        else:
            seen[alike] = text
    return problems


def _level_problems(raw: Mapping[str, Any]) -> list[str]:
    """Stages that need more of every image than the level of the contributions keeps."""
    level = _at(raw, "contributions", "level")
    size = _at(raw, "contributions", "shard_size")
    problems = []
    if level != "moments" and isinstance(size, int) and size > MAX_SHARD_ROWS:
        problems.append(
            f"contributions.shard_size: {size} images are more than a job can hold; at most "
            f"{MAX_SHARD_ROWS}, or contributions.level: moments"
        )
    if level not in ALLOWED:
        return problems
    stages = ["maps", "scores", *(f"applications.{name}" for name in Applications.model_fields)]
    problems += [
        f"{stage}: needs the contributions of every image, which contributions.level: {level} "
        f"does not keep; leave it out (allowed: {', '.join(ALLOWED[level])}), or use level factored"
        for stage in stages
        if _at(raw, *stage.split(".")) is not None and stage not in ALLOWED[level]
    ]
    fitted = [
        name for name in _keys(raw, "models") if not is_clip(str(_at(raw, "models", name, "id")))
    ]
    if raw.get("maps") and fitted and not _at(raw, "maps", "given"):
        problems += _fit_problems(raw["maps"], fitted[0], str(level))
    if _at(raw, "scores", "method") == "nonnegative" and level == "moments":
        problems.append(
            "scores.method: 'nonnegative' reads every image, which contributions.level: moments "
            "does not keep; valid: textspan, omp, published"
        )
    if _at(raw, "applications", "ablation", "classifier") == "probe" and level == "projected":
        problems.append(
            "applications.ablation.classifier: a probe reads other directions than "
            "contributions.level: projected keeps; valid: own, zero_shot"
        )
    return problems


def _fit_problems(maps: Any, model: str, level: str) -> list[str]:
    """Ways to fit maps that need more of every image than the level of the contributions keeps."""
    elsewhere = "fit maps in a run of level factored on fewer images, and name its folder in "
    elsewhere += "maps.given"
    if level == "projected":
        return [
            f"maps: those of {model} are fitted on the contributions of every image, which "
            f"contributions.level: {level} does not keep; {elsewhere}"
        ]
    baselines = _at(maps, "baselines")
    asked = [("method", _at(maps, "method") or Maps.model_fields["method"].default)]
    asked += [("baselines", name) for name in (baselines if isinstance(baselines, list) else [])]
    problems = [
        f"maps.{key}: {name!r} is fitted on the contributions of every image, which "
        f"contributions.level: {level} does not keep; valid: ridge; or {elsewhere}"
        for key, name in asked
        if name != "ridge"
    ]
    target = _at(maps, "target") or "image"
    if target != "image":
        problems.append(
            f"maps.target: {target!r} changes with the words of the run, and with "
            f"contributions.level: {level} every change would read all images anew; valid: image; "
            f"or {elsewhere}"
        )
    return problems


def _file_problems(raw: Mapping[str, Any]) -> list[str]:
    """Files and folders that are named but absent, and columns that a table does not have."""
    places = [("templates",), ("maps", "given"), ("reference", "weights")]
    places += [("reference", "texts", key) for key in ("embeddings", "names")]
    for model in _keys(raw, "models"):
        places.append(("models", model, "weights"))
    for name in _keys(raw, "datasets"):
        places += [("datasets", name, "path"), ("datasets", name, "class_names")]
    named = {".".join(place): _at(raw, *place) for place in places}
    for place in [f"models.{name}.id" for name in _keys(raw, "models")] + ["reference.id"]:
        folder = local_folder(str(_at(raw, *place.split("."))))
        named[place] = str(folder) if folder else None
    probes = _at(raw, "applications", "retrieval", "probes")
    for number, probe in enumerate(probes if isinstance(probes, list) else []):
        named[f"applications.retrieval.probes.{number}"] = probe
    pools = _at(raw, "text_pool")
    pools = pools if isinstance(pools, list) else [pools]
    pairs = [("text_pool", pool) for pool in pools if pool not in IMAGENET_POOLS]
    problems = [
        f"{place}: {path} does not exist"
        for place, path in [*pairs, *named.items()]
        if isinstance(path, str) and "${" not in path and not Path(path).exists()
    ]
    for name in _keys(raw, "datasets"):
        problems += _column_problems(f"datasets.{name}", _at(raw, "datasets", name))
    texts = _at(raw, "reference", "texts")
    if isinstance(texts, Mapping) and isinstance(texts.get("column"), str):
        path = Path(str(texts.get("names")))
        problems += _missing_columns("reference.texts", path, {"column": texts["column"]})
    return problems


def _pool_problems(raw: Mapping[str, Any]) -> list[str]:
    """More texts asked for of a component than the files of the pool, or of names, have."""
    if not isinstance(raw.get("scores"), Mapping):
        return []
    default = Scores.model_fields["texts_per_component"].default
    asked, pools = raw["scores"].get("texts_per_component", default), _at(raw, "text_pool")
    pools = pools if isinstance(pools, list) else [pools]
    key, more = "text_pool", "name further files"
    if pools == [None] and _at(raw, "reference", "texts", "column") is None:
        pools = [_at(raw, "reference", "texts", "names")]
        key, more = "reference.texts.names", "give embeddings and names of further texts"
    known = [isinstance(pool, str) and Path(pool).is_file() for pool in pools]
    if not isinstance(asked, int) or not all(known):  # a pool of timm has a thousand and more
        return []
    lines = (
        line for pool in pools for line in Path(pool).read_text("utf-8", "replace").split("\n")
    )
    texts = {line.rpartition("\t")[2].strip().casefold() for line in lines if line[:1] != "#"}
    count = len(texts - {""})
    if asked <= count:
        return []
    return [
        f"scores.texts_per_component: {asked} are asked for, but {key} has {count} texts; ask "
        f"for fewer, or {more}"
    ]


def _column_problems(place: str, dataset: Any) -> list[str]:
    path = _at(dataset, "path")
    if _at(dataset, "source") != "table" or not isinstance(path, str):
        return []
    wanted: dict[str, str] = {}
    columns = _at(dataset, "columns")
    for key, column in columns.items() if isinstance(columns, Mapping) else ():
        for part in column if isinstance(column, list) else [column]:
            if isinstance(part, str):
                wanted[f"columns.{key}" + (f".{part}" if isinstance(column, list) else "")] = part
    factors = _at(dataset, "factors")
    wanted |= {f"factors.{c}": str(c) for c in (factors if isinstance(factors, list) else [])}
    values = _at(dataset, "values")
    wanted |= {f"values.{c}": str(c) for c in (values if isinstance(values, Mapping) else {})}
    return _missing_columns(place, Path(path), wanted)


def _missing_columns(place: str, path: Path, wanted: Mapping[str, str]) -> list[str]:
    if not path.is_file():
        return []  # said already, as a missing path
    try:
        present = table_columns(path)
    except ConfigError as error:
        return [f"{place}.path: {error}"]
    return [
        f"{place}.{key}: {path} has no column {column!r}; {close_matches(column, present)}"
        for key, column in wanted.items()
        if column not in present
    ]


def table_columns(path: Path) -> list[str]:
    """Names of the columns of a CSV or Parquet table.

    Raises
    ------
    ConfigError
        If it is neither, or cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            return list(pq.read_schema(path).names)
        if path.suffix in (".csv", ".tsv"):
            with path.open(newline="", encoding="utf-8-sig") as lines:
                return next(csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ","), [])
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path} cannot be read as a table: {error}") from error
    raise ConfigError(f"{path} is no table; valid: .csv, .tsv, .parquet")
