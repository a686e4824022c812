"""Questions to a finished run or to a model, answered at once: what the command line asks.

Each answer is data or a picture; how it is shown is in `command_line`. The same functions do the
work as in the pipeline's stages.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw

from pipeline_lib.artifacts import atomic_path, read_table
from pipeline_lib.codes import Dictionary, encode
from pipeline_lib.config import Contributions, RunConfig, load_config, space_of
from pipeline_lib.decomposition import decompose
from pipeline_lib.dumps import Dump, open_dump
from pipeline_lib.errors import ConfigError, DataError, ModelError, close_matches
from pipeline_lib.heatmaps import (
    common_scale,
    draw_overlay,
    pixel_range,
    seen_by_model,
    token_maps,
    upsample,
)
from pipeline_lib.images import read_image
from pipeline_lib.maps import Maps, load_maps
from pipeline_lib.models import VisionModel, load_model
from pipeline_lib.passes import hold
from pipeline_lib.retrieval_ways import rank_components
from pipeline_lib.search import concepts_of, nearest, similarities, way_to_search

#: Images of the run whose mean is taken off an image's contributions.
REFERENCE = 512


def list_models(library: str, words: str = "") -> list[str]:
    """Ids of the models that a library knows whose names contain some words.

    Parameters
    ----------
    library
        `timm` or `open_clip`.
    words
        Part of the name; in timm also a pattern with `*`.

    Raises
    ------
    ModelError
        The library is another one.
    """
    from pipeline_lib._torchvision import ensure_torchvision

    ensure_torchvision()
    if library == "timm":
        import timm

        pattern = words if "*" in words else f"*{words}*"
        return [f"timm:{name}" for name in timm.list_models(pattern)]
    if library == "open_clip":
        import open_clip

        pairs = open_clip.list_pretrained()
        return [f"open_clip:{name}/{tag}" for name, tag in pairs if words in f"{name}/{tag}"]
    raise ModelError(
        f"unknown library {library!r}; {close_matches(library, ('timm', 'open_clip'))}"
    )


@dataclass(frozen=True)
class Inspection:
    """What a model is made of, and what decomposing it costs.

    Attributes
    ----------
    components
        Rows of table `components`.
    readout
        What the representation is.
    width
        Its length.
    error
        Largest relative error of the sum on random images.
    plain, decomposed
        Seconds of a forward pass and of a decomposition, per image.
    megabytes
        Size of the contributions of 1,000 images, whole and in float32.
    """

    components: pd.DataFrame
    readout: str
    width: int
    error: float
    plain: float
    decomposed: float
    megabytes: float


def inspect_model(model: VisionModel, batch: int = 4) -> Inspection:
    """Decompose random images and say what came out.

    Parameters
    ----------
    model
        The model.
    batch
        Random images.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *model.input_size, generator=generator).to(model.device)
    parts = decompose(model, images)  # plans once
    began = time.perf_counter()
    decompose(model, images)
    decomposed = time.perf_counter() - began
    with torch.no_grad():
        began = time.perf_counter()
        (model.module.encode_image if model.is_clip else model.module)(images)  # type: ignore[operator]
        plain = time.perf_counter() - began
    count, width = parts.values.shape[1:]
    return Inspection(
        parts.components,
        parts.readout,
        width,
        float(parts.error.max()),
        plain / batch,
        decomposed / batch,
        4 * count * width / 1000,
    )


@dataclass(frozen=True)
class Run:
    """One model of a finished run, on the data set of an application.

    Attributes
    ----------
    config, name, dataset
        The configuration, the model's key in it, and the data set's.
    dump, maps, texts
        What the run has made.
    """

    config: RunConfig
    name: str
    dataset: str
    dump: Dump
    maps: Maps
    texts: pd.DataFrame

    @classmethod
    def open(cls, config: str | Path, name: str, dataset: str | None = None) -> Run:
        """What a run has made of a model.

        Parameters
        ----------
        config
            Configuration file of the run.
        name
            Model, a key of `models`.
        dataset
            Data set; by default that of the maps.

        Raises
        ------
        ConfigError
            The run has no such model or data set, or no maps.
        ArtifactError
            Something has not been made yet.
        """
        found = load_config(config)
        if name not in found.models:
            raise ConfigError(f"no model {name!r} in {config}; {close_matches(name, found.models)}")
        if found.maps is None:
            raise ConfigError(f"{config} has no section `maps`, which this question needs")
        data = dataset or found.maps.dataset
        if data not in found.datasets:
            raise ConfigError(
                f"no data set {data!r} in {config}; {close_matches(data, found.datasets)}"
            )
        folder = found.folder
        return cls(
            found,
            name,
            data,
            open_dump(
                folder / f"contributions/{name}/{data}.zarr",
                folder / f"manifest/{data}/images.parquet",
            ),
            load_maps(folder / f"maps/{name}.safetensors"),
            read_table("text_features", folder / f"features/texts/{space_of(found, name)}.parquet"),
        )

    def model(self) -> VisionModel:
        """The model itself."""
        section = self.config.models[self.name]
        torch.manual_seed(0)
        return load_model(section.id, weights=section.weights, **section.kwargs)

    def scores(self) -> pd.DataFrame:
        """Table `scores` of the model."""
        if self.config.scores is None:
            raise ConfigError("the run has no section `scores`, which tells who carries what")
        data = self.config.scores.dataset
        path = self.config.folder / f"scores/{self.name}/{data}.scores.parquet"
        return read_table("scores", path)

    def choices(self) -> pd.DataFrame | None:
        """Table `retrieval_choices` of the model; None where the run has no retrieval."""
        asked = self.config.applications.retrieval
        if asked is None:
            return None
        folder = self.config.folder / f"applications/retrieval/{self.name}"
        return read_table("retrieval_choices", folder / f"{asked.dataset}.choices.parquet")

    def reference(self) -> Float[np.ndarray, "r c d"]:
        """Contributions of some of the run's images, drawn at random."""
        drawn = np.random.default_rng(self.config.seed).permutation(self.dump.n)[:REFERENCE]
        return self.dump.contributions(np.sort(drawn))

    def contributions_of(self, image: str | Path) -> Float[np.ndarray, "1 c d"]:
        """Contributions of any image file, by the run's model."""
        return contributions_of(self.model(), image, self.config.contributions, self.dump)


def contributions_of(
    model: VisionModel, image: str | Path, settings: Contributions, dump: Dump
) -> Float[np.ndarray, "1 c d"]:
    """Contributions of any image file, in the components of a dump.

    Parameters
    ----------
    model
        The model that made the dump.
    image
        Image file.
    settings
        How the dump was made.
    dump
        The dump.

    Raises
    ------
    ModelError
        The model has other components than the dump.
    """
    pixels = model.preprocess(read_image(image))[None].to(model.device)
    parts = decompose(model, pixels, per=settings.per, bias=settings.bias)
    if len(parts.components) != len(dump.components):
        raise ModelError(
            f"{model.id} has {len(parts.components)} components, but its dump "
            f"{len(dump.components)}; run snakemake to bring the dump up to date"
        )
    return parts.values.cpu().numpy()


def find(
    run: Run,
    feature: str,
    *,
    text: str | None = None,
    image: str | Path | None = None,
    components: int | None = None,
    count: int = 8,
) -> pd.DataFrame:
    """Images of a run that show a property, asked by a text or by an image.

    Parameters
    ----------
    run
        The run.
    feature
        Property: a key of `concepts`.
    text
        One of the property's descriptors.
    image
        Any image file; images like it in this property are found.
    components
        Components of the property whose contributions are added up, those with the highest scores
        (the published way); None for the way that the run's retrieval has chosen.
    count
        Images to find.

    Returns
    -------
    DataFrame
        Columns `image_id`, `path`, `score`, the best first.

    Raises
    ------
    DataError
        Unknown property or text, or not exactly one of text and image.
    """
    probe = None if image is None else run.contributions_of(image)[0]
    query, scores = "image" if text is None else "text", run.scores()
    rank_components(scores, feature)  # refuses an unknown property
    concepts, held = concepts_of(run.texts, feature), hold(run.dump, np.arange(run.dump.n), 0)
    asked = run.config.applications.retrieval
    fixed = components or (asked.components if asked else None)
    way = way_to_search(scores, None if fixed else run.choices(), query, feature, fixed)
    found = similarities(run.dump, run.maps, concepts, way, held, text=text, probe=probe)
    return nearest(run.dump.manifest, found, count)


def draw_grid(
    rows: Mapping[str, Sequence[Path]], path: str | Path, probe: str | Path | None = None
) -> None:
    """The images found as one PNG: a row for each property, the probe first in each.

    Parameters
    ----------
    rows
        Title of each row to its image files, the best first.
    path
        PNG to write.
    probe
        Image that was asked by.
    """
    side, gap, title = 128, 6, 14
    first = [] if probe is None else [Path(probe)]
    files = {name: [*first, *found] for name, found in rows.items()}
    width = max(map(len, files.values())) * (side + gap) + gap
    height = side + 2 * gap + title
    sheet = Image.new("RGB", (width, len(files) * height), "white")
    pen = ImageDraw.Draw(sheet)
    for line, (name, found) in enumerate(files.items()):
        pen.text((gap, line * height + gap // 2), name, fill="black")
        for place, file in enumerate(found):
            picture = read_image(file)
            picture.thumbnail((side, side))
            sheet.paste(picture, (gap + place * (side + gap), line * height + gap + title))
    with atomic_path(path) as beside:
        sheet.save(beside, format="PNG")


@dataclass(frozen=True)
class Direction:
    """What a heat map is drawn for.

    Attributes
    ----------
    name
        Class or text.
    vector
        Direction of the representation.
    """

    name: str
    vector: Float[np.ndarray, " d"]


def direction_of(
    model: VisionModel, images: torch.Tensor, wanted: str | None, text: str | None
) -> Direction:
    """Direction of a class, of a text (CLIP only), or of the class that the model predicts.

    Raises
    ------
    ModelError
        The model has no classifier, or no text tower.
    DataError
        The class is unknown.
    """
    if text is not None:
        vectors = model.encode_text([text, "a photo", "an image", "a picture of something"]).numpy()
        return Direction(text, vectors[0] - vectors[1:].mean(axis=0))
    if model.classifier is None or model.class_names is None:
        raise ModelError(f"{model.id} has no classifier; ask a CLIP model with --text")
    weight = model.classifier.weight.detach().numpy()
    names, words = list(model.class_names), list(model.class_descriptions or model.class_names)
    if wanted is None:
        with torch.no_grad():
            number = int(model.module(images)[0].argmax())
    elif wanted in names or wanted in words:
        number = names.index(wanted) if wanted in names else words.index(wanted)
    else:
        raise DataError(f"{wanted!r} is no class of {model.id}; {close_matches(wanted, names)}")
    return Direction(words[number], weight[number] - weight.mean(axis=0))


def heatmap(
    model: VisionModel,
    image: str | Path,
    path: str | Path,
    *,
    wanted: str | None = None,
    text: str | None = None,
    components: Sequence[str] | None = None,
) -> str:
    """Draw where in a picture a class or text comes from, and say which it was.

    Parameters
    ----------
    model
        The model.
    image
        Image file.
    path
        PNG to write.
    wanted, text
        Class name, or a text for a CLIP model; neither for the predicted class.
    components
        Names of the components summed; all by default.
    """
    images = model.preprocess(read_image(image))[None]
    direction = direction_of(model, images, wanted, text)
    found = token_maps(model, images, direction.vector[None].astype(np.float32), components)
    heat = upsample(found, model.input_size)[0]
    picture = seen_by_model(images, pixel_range(model.preprocess, model.input_size))[0]
    draw_overlay(picture, heat, common_scale(heat), path, title=direction.name)
    return direction.name


def describe(run: Run, image: str | Path, *, texts: int = 5, carriers: int = 3) -> pd.DataFrame:
    """An image file as a short list of texts, and the components that carry each.

    Returns
    -------
    DataFrame
        Columns `text`, `weight`, `explained`, `carriers` (names with their shares).
    """
    dictionary, usual = Dictionary.of(run.texts), run.reference().mean(axis=0)
    beside = torch.from_numpy(run.contributions_of(image) - usual)
    mapped = run.maps.apply_total(beside) - run.maps.bias
    codes = encode(mapped.numpy(), dictionary.vectors, texts)
    chosen = codes.chosen[0][codes.chosen[0] >= 0]
    directions = run.maps.directions(dictionary.vectors[chosen], beside.shape[1])
    products = torch.einsum("cd,cdk->kc", beside[0], directions).numpy()
    ids = run.dump.components["id"].to_numpy()
    rows = []
    for rank, (number, parts) in enumerate(zip(chosen, products, strict=True)):
        first = np.argsort(-parts, kind="stable")[:carriers]
        named = ", ".join(f"{ids[c]} {parts[c] / parts.sum():.0%}" for c in first)
        rows.append(
            {
                "text": dictionary.texts[int(number)],
                "weight": float(codes.weights[0, rank]),
                "explained": float(codes.explained[0, rank]),
                "carriers": named,
            }
        )
    return pd.DataFrame(rows, columns=["text", "weight", "explained", "carriers"])
