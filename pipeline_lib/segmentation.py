"""Zero-shot segmentation: heat maps thresholded and compared with masks, by named protocols.

Heat maps come from token maps by a recipe of `token_recipes`, or from `baseline_maps`; what is
counted is in `segmentation_counts`.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from pipeline_lib.baseline_maps import GradCam, patch_text, raw_attention, rollout
from pipeline_lib.classify import LinearClassifier
from pipeline_lib.containers import read_content
from pipeline_lib.errors import DataError
from pipeline_lib.heatmaps import (
    HasPreprocessing,
    Span,
    gradient_maps,
    image_directions,
    pixel_range,
    representations,
    squash,
    upsample,
)
from pipeline_lib.images import read_image
from pipeline_lib.segmentation_counts import Counts
from pipeline_lib.token_recipes import (
    RECIPES,
    Recipe,
    Usual,
    energy,
    evidence_directions,
    evidence_maps,
)

logger = logging.getLogger(__name__)

#: From a batch of images [b,3,h,w] and their positions [b] to one map per image [b,gh,gw].
Mapper = Callable[[Tensor, Int[np.ndarray, " b"]], Float[np.ndarray, "b gh gw"]]


def object_mask(mask: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where a mask shows any object: values above 0 (0 or 255, or class number plus one)."""
    return np.asarray(mask) > 0


def read_mask(path: str | Path, size: tuple[int, int]) -> Image.Image:
    """A mask file as one channel of values, of the same size as its picture.

    Parameters
    ----------
    path
        Picture of one channel (grey or palette, whose numbers are kept), or of several, of which
        the largest counts.
    size
        Width and height of the picture it belongs to.

    Raises
    ------
    DataError
        The file cannot be read, or has another size.
    """
    try:
        with Image.open(io.BytesIO(read_content(Path(path)))) as opened:
            values = np.asarray(opened)
    except (DataError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a mask: {error}") from error
    if values.ndim == 3:
        values = values[..., :3].max(axis=2)
    height, width = values.shape
    if (width, height) != size:
        raise DataError(
            f"{path} is {width}×{height} pixels, but its picture is {size[0]}×{size[1]}; "
            "a mask must have the size of its picture"
        )
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def squash_mask(mask: Image.Image, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    """A whole mask squashed to `size` (height, width), as `heatmaps.squash` does with pictures."""
    return np.asarray(mask.resize((size[1], size[0]), Image.Resampling.NEAREST))


@dataclass(frozen=True)
class Pair:
    """A picture, its mask if it has one, and the hash that the picture's file must have."""

    picture: Path
    mask: Path | None
    sha256: str | None = None


def load_pair(
    model: HasPreprocessing, pair: Pair, protocol: str, span: Span
) -> tuple[Float[Tensor, "3 h w"], Bool[np.ndarray, "h w"]]:
    """Picture and mask at the model's input size, brought there the same way.

    The mask of a picture without one shows nothing anywhere.

    Parameters
    ----------
    model
        Whose preprocessing and input size are used.
    pair
        The files.
    protocol
        `C`: both squashed; `V`: both through the model's own resize and crop.
    span
        Black and white of the model's preprocessing, from `heatmaps.pixel_range`.
    """
    picture = read_image(pair.picture, pair.sha256)
    nothing = Image.new("L", picture.size)
    mask = nothing if pair.mask is None else read_mask(pair.mask, picture.size)
    if protocol == "C":
        height, width = model.input_size
        image = squash(picture, (height, width), span)
        return image, object_mask(squash_mask(mask, (height, width)))
    return model.preprocess(picture), object_mask(model.preprocess_mask(mask))


@dataclass(frozen=True)
class Segments:
    """What `segment` found.

    Attributes
    ----------
    table
        Rows of table `segmentation`, without model and data set. An image whose crop holds nothing
        of the object is left out of that protocol by every method, which is logged and seen in `n`.
    images
        Rows of table `segmentation_images`, without model and data set: each image by itself.
    """

    table: pd.DataFrame
    images: pd.DataFrame


def segment(
    model: HasPreprocessing,
    pairs: Sequence[Pair],
    methods: Mapping[str, Mapper],
    protocols: Sequence[str],
    *,
    image_ids: Sequence[str] | None = None,
    batch_size: int = 16,
) -> Segments:
    """Segmentation of a set of images by several methods, on the same pixels.

    Parameters
    ----------
    model
        Whose preprocessing and input size are used.
    pairs
        Pictures with their masks.
    methods
        Name to a function of a batch of images and their positions in `pairs`, giving one map per
        image on any grid, higher where the object should be.
    protocols
        Keys of `PROTOCOLS`.
    image_ids
        Name of each pair; its number by default.
    batch_size
        Images per call of a method; the result does not depend on it.
    """
    names = [str(i) for i in range(len(pairs))] if image_ids is None else list(image_ids)
    counts = {(protocol, name): Counts(protocol) for protocol in protocols for name in methods}
    span = pixel_range(model.preprocess, model.input_size)
    skipped = dict.fromkeys(protocols, 0)
    for start in range(0, len(pairs), batch_size):
        positions = np.arange(start, min(start + batch_size, len(pairs)))
        before: tuple[Tensor, dict[str, np.ndarray]] | None = None
        for protocol in protocols:
            loaded = [load_pair(model, pairs[int(i)], protocol, span) for i in positions]
            images = torch.stack([image for image, _ in loaded])
            if before is None or not torch.equal(images, before[0]):  # else: cropped alike
                maps = {
                    method: upsample(mapper(images, positions), model.input_size)
                    for method, mapper in methods.items()
                }
                before = (images, maps)
            for place, (_, mask) in enumerate(loaded):
                skipped[protocol] += not mask.any()
                for method, heats in before[1].items():
                    if mask.any():
                        name = names[int(positions[place])]
                        counts[protocol, method].add(heats[place], mask, name)
    for protocol, count in skipped.items():
        if count:
            logger.warning("%s: %d images show nothing of their object", protocol, count)
    rows, images_of = [], []
    for (protocol, method), found in counts.items():
        key = {"protocol": protocol, "method": method}
        rows.append({**key, **found.result()})
        images_of += [{**key, **image} for image in found.images()]
    return Segments(pd.DataFrame(rows), pd.DataFrame(images_of))


def choose_recipe(
    model: object,
    pairs: Sequence[Pair],
    classifier: LinearClassifier,
    protocol: str,
    labels: Sequence[str] | None = None,
    *,
    batch_size: int = 16,
) -> tuple[Recipe, pd.DataFrame]:
    """The recipe that segments some images best, and how all of them do.

    Parameters
    ----------
    model
        A `VisionModel`.
    pairs
        Pictures with their masks; other images than those that are reported.
    classifier
        Linear classifier on the representation.
    protocol
        Key of `PROTOCOLS`; by mean IoU under C, by the object's IoU under V.
    labels
        Class of each image; None for the class that is predicted.

    Returns
    -------
    tuple
        The recipe, with what is usual in these images, and rows of table `segmentation_choices`,
        without model and data set.
    """
    given = cast(HasPreprocessing, model)
    span = pixel_range(given.preprocess, given.input_size)
    loaded = [load_pair(given, pair, protocol, span) for pair in pairs]
    images = torch.stack([image for image, _ in loaded])
    directions = evidence_directions(classifier)
    parts = images.split(batch_size)
    maps = np.concatenate([evidence_maps(model, part, directions) for part in parts])
    usual = Usual.of(maps)
    own = image_directions(classifier, *_asked(model, images, np.arange(len(images)), labels))[0]
    measure = "miou" if protocol == "C" else "iou_object"
    rows = []
    for name, form in RECIPES.items():
        if form.power is None:
            heats = Recipe(name, directions, usual).maps(model, images, lambda: own)
        else:
            heats = energy(maps, usual, form)
        counts = Counts(protocol)
        for heat, (_, mask) in zip(upsample(heats, given.input_size), loaded, strict=True):
            if mask.any():
                counts.add(heat, mask)
        found = counts.result()
        kept = {key: found[key] for key in ("iou_object", "miou", "n")}
        rows.append({"protocol": protocol, "recipe": name, **kept})
    choices = pd.DataFrame(rows)
    best = str(choices.loc[choices[measure].astype(float).idxmax(), "recipe"])
    choices["chosen"] = choices["recipe"] == best
    logger.info("recipe: %s, chosen on %d images", best, len(pairs))
    return Recipe(best, directions, usual), choices


def methods(
    model: object,
    classifier: LinearClassifier,
    recipe: Recipe,
    labels: Sequence[str] | None = None,
) -> dict[str, Mapper]:
    """The decomposition's maps and the baselines, for `segment`.

    Parameters
    ----------
    model
        A `VisionModel`.
    classifier
        Linear classifier on the representation; a map is of one of its classes, or of all.
    recipe
        How the decomposition's signed maps become one, from `choose_recipe`.
    labels
        Class of each image, in the order of the pairs; None for the class that is predicted.

    Returns
    -------
    dict
        `decomposition`: token maps by the recipe; `gradient`: gradient times input along the
        class, absolute; `gradcam`, `attention`, `rollout`, `patch_text`: see `baseline_maps`, left
        out where the model has no such map; `centre`: a Gaussian in the middle of the picture;
        `uniform`: nothing found anywhere.
    """
    module: Any = getattr(model, "module", model)
    height, width = cast(HasPreprocessing, model).input_size
    blank = torch.zeros(1, 3, height, width)
    camera = GradCam(model, blank)

    def directions(images: Tensor, at: Int[np.ndarray, " b"]) -> Float[np.ndarray, "b d"]:
        return image_directions(classifier, *_asked(model, images, at, labels))[0]

    found: dict[str, Mapper] = {
        "decomposition": lambda images, at: recipe.maps(
            model, images, lambda: directions(images, at)
        ),
        "gradient": lambda images, at: gradient_maps(
            model, images, directions(images, at), recipe.grid
        ),
    }
    if camera.fits:
        found["gradcam"] = lambda images, at: camera(images, directions(images, at))
    if raw_attention(module, blank) is not None:
        found["attention"] = lambda images, at: _not_none(raw_attention(module, images))
    if rollout(module, blank) is not None:
        found["rollout"] = lambda images, at: _not_none(rollout(module, images))
    if patch_text(module, blank, classifier.weight[:1]) is not None:
        found["patch_text"] = lambda images, at: _not_none(
            patch_text(module, images, directions(images, at))
        )
    found["centre"] = lambda images, at: np.repeat(
        centre_prior(*images.shape[-2:])[None], len(images), axis=0
    )
    found["uniform"] = lambda images, at: np.zeros((len(images), 1, 1), dtype=np.float32)
    return found


def _asked(
    model: object,
    images: Tensor,
    at: Int[np.ndarray, " b"],
    labels: Sequence[str] | None,
) -> tuple[Float[np.ndarray, "b d"], list[str] | None]:
    """Representation, where the class is predicted from it, and the labels of a batch."""
    if labels is None:
        return representations(model, images), None
    return np.empty((0, 0), dtype=np.float32), [labels[int(i)] for i in at]


def _not_none(found: Float[np.ndarray, "b gh gw"] | None) -> Float[np.ndarray, "b gh gw"]:
    if found is None:
        raise DataError("a baseline gave a map for one batch of images and none for another")
    return found


def centre_prior(height: int, width: int, spread: float = 0.25) -> Float[np.ndarray, "h w"]:
    """A Gaussian around the middle of the picture: what a photographer's habit alone gives.

    Parameters
    ----------
    height, width
        Size in pixels.
    spread
        Standard deviation as a share of each side.
    """
    rows = (np.arange(height) + 0.5) / height - 0.5
    columns = (np.arange(width) + 0.5) / width - 0.5
    squared = rows[:, None] ** 2 + columns[None, :] ** 2
    return np.exp(-squared / (2 * spread**2))


def example_images(images: pd.DataFrame, method: str = "decomposition") -> pd.DataFrame:
    """The best, the median and the worst image of a method, by the IoU of the object.

    Parameters
    ----------
    images
        Rows of table `segmentation_images` of one protocol.
    method
        Method that they are ordered by.

    Returns
    -------
    DataFrame
        Columns `place` (best, median, worst), `image_id` and `iou_object`.
    """
    part = images[images["method"] == method].sort_values(
        ["iou_object", "image_id"], ascending=[False, True]
    )
    rows = {"best": 0, "median": (len(part) - 1) // 2, "worst": len(part) - 1}
    chosen = part.iloc[list(rows.values())][["image_id", "iou_object"]].reset_index(drop=True)
    chosen.insert(0, "place", list(rows))
    return chosen
