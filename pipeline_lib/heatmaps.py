"""Token heat maps: where in the picture a direction comes from, drawn and measured.

A map holds, for every token of the patch grid, the sum of what the chosen components take from that
token along a direction (a class of a linear classifier, or a text). Maps are signed: zero is
neutral. Thresholding them into segments belongs in `segmentation`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib import pyplot as plt
from matplotlib.colors import TwoSlopeNorm
from PIL import Image
from torch import Tensor

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.classify import LinearClassifier, check_labels
from pipeline_lib.decomposition import decompose, plan_for
from pipeline_lib.decomposition.run import start
from pipeline_lib.errors import DataError
from pipeline_lib.maps import Maps
from pipeline_lib.passes import images_of_split

#: Diverging palette that colour-blind readers can tell apart: blue below zero, red above.
PALETTE = "RdBu_r"

#: Percentile of the absolute values of all maps shown together that ends the colour bar.
SCALE_PERCENTILE = 99.5


def class_directions(
    classifier: LinearClassifier, classes: Sequence[str]
) -> Float[np.ndarray, "k d"]:
    """Direction of each class: its weights less the mean over classes.

    The mean is what raises all logits alike and says nothing for one class against the others.

    Raises
    ------
    DataError
        A class is not one of the classifier's.
    """
    check_labels(classes, classifier.classes, classifier.kind)
    centred = classifier.weight - classifier.weight.mean(axis=0)
    return centred[[classifier.classes.index(str(name)) for name in classes]]


#: What a preprocessing makes of black and of white [3,1,1].
Span = tuple[Tensor, Tensor]


class HasPreprocessing(Protocol):
    """What is needed of a model to bring pictures and masks to its input."""

    @property
    def input_size(self) -> tuple[int, int]: ...

    def preprocess(self, picture: Image.Image) -> Float[Tensor, "3 h w"]: ...

    def preprocess_mask(self, mask: Image.Image) -> UInt8[np.ndarray, "h w"]: ...


def pixel_range(preprocess: Callable[[Image.Image], Tensor], size: tuple[int, int]) -> Span:
    """What a model's preprocessing makes of black and of white, channel by channel.

    Every pixel of a preprocessed picture lies between the two on a straight line, whatever mean and
    standard deviation the model was trained with.
    """
    ends = [preprocess(Image.new("RGB", size, colour)) for colour in ("black", "white")]
    low, high = (end.flatten(1).mean(dim=1)[:, None, None] for end in ends)
    return low, high


def seen_by_model(images: Float[Tensor, "n 3 h w"], span: Span) -> UInt8[np.ndarray, "n h w 3"]:
    """Preprocessed images back as pictures: the crop that the model sees, for drawing.

    Parameters
    ----------
    images
        What the model's preprocessing gave.
    span
        Black and white, from `pixel_range`.
    """
    low, high = span
    shares = ((images - low) / (high - low)).clamp(0.0, 1.0)
    return (shares * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def squash(
    picture: Image.Image,
    size: tuple[int, int],
    span: Span,
) -> Float[Tensor, "3 h w"]:
    """A whole picture squashed to the model's input size (height, width), nothing cut off.

    The pixel scaling is the model's own (`span` from `pixel_range`).
    """
    height, width = size
    resized = picture.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    shares = torch.from_numpy(np.asarray(resized).astype(np.float32) / 255.0).permute(2, 0, 1)
    low, high = span
    return low + shares * (high - low)


def token_maps(
    model: object,
    images: Float[Tensor, "n 3 h w"],
    directions: Float[np.ndarray, "n d"],
    components: Sequence[int | str] | None = None,
) -> Float[np.ndarray, "n gh gw"]:
    """What the components take from each patch along one direction per image, summed.

    Parameters
    ----------
    model
        A `VisionModel`, or a module that `decompose` takes.
    images
        Preprocessed images.
    directions
        One direction in representation space for each image.
    components
        Names or numbers of the components summed; all by default.

    Raises
    ------
    DataError
        None of the components takes anything from patches.

    Notes
    -----
    Direct contributions by source token (P1, section 3.3): with the leading tokens' and constants'
    shares, they sum over patches to the representation's product with the direction.
    """
    unique, which = np.unique(directions, axis=0, return_inverse=True)
    wanted = torch.from_numpy(np.ascontiguousarray(unique, dtype=np.float32))
    images = _on_device_of(model, images)
    parts = decompose(model, images, per="token", components=components, directions=wanted)
    if 0 in parts.grid:
        shown = ", ".join(parts.components["id"].head(5))
        raise DataError(
            f"no token map: {shown} take nothing from the patches, as the representation is read "
            "at other tokens only; ask for attention heads"
        )
    summed = parts.maps().sum(dim=1)
    rows = torch.arange(len(images))
    return summed.cpu()[rows, torch.from_numpy(which.reshape(-1))].numpy()


def _on_device_of(model: object, images: Tensor) -> Tensor:
    """Images on the device of the model's first parameter."""
    module: Any = getattr(model, "module", model)
    return images.to(next(module.parameters()).device)


def representations(model: object, images: Float[Tensor, "n 3 h w"]) -> Float[np.ndarray, "n d"]:
    """Representation `z` of images, by the model's own forward pass."""
    images = _on_device_of(model, images)
    with torch.no_grad():
        return start(plan_for(model, images), images)[1].cpu().numpy()


def patch_grid(model: object, images: Float[Tensor, "n 3 h w"]) -> tuple[int, int]:
    """Rows and columns of the token maps of a model at the size of these images."""
    width = representations(model, images[:1]).shape[1]
    one = _on_device_of(model, images[:1])
    return decompose(model, one, per="token", directions=torch.zeros(1, width)).grid


def gradient_maps(
    model: object,
    images: Float[Tensor, "n 3 h w"],
    directions: Float[np.ndarray, "n d"],
    grid: tuple[int, int],
) -> Float[np.ndarray, "n gh gw"]:
    """Gradient times input along one direction per image, averaged over the cells of a grid.

    A baseline that every model allows: how much, to first order, each pixel changes the
    representation along the direction; absolute value of the sum over colours.

    Parameters
    ----------
    model
        A `VisionModel`, or a module that `decompose` takes.
    images
        Preprocessed images.
    directions
        One direction in representation space for each image.
    grid
        Rows and columns to average over, those of the token map it is compared with.
    """
    pixels = _on_device_of(model, images).detach().clone().requires_grad_(True)
    with torch.enable_grad():
        z = start(plan_for(model, pixels), pixels)[1]
        wanted = torch.from_numpy(np.ascontiguousarray(directions)).to(z)
        (gradient,) = torch.autograd.grad((z * wanted).sum(), pixels)
    strength = (gradient * pixels.detach()).sum(dim=1).abs()
    return torch.nn.functional.adaptive_avg_pool2d(strength, grid).cpu().numpy()


def image_directions(
    classifier: LinearClassifier,
    representation: Float[np.ndarray, "n d"],
    labels: Sequence[str] | None = None,
) -> tuple[Float[np.ndarray, "n d"], list[str]]:
    """Direction and name of each image's class: its label's, or the class that is predicted.

    Parameters
    ----------
    classifier
        Linear classifier on the representation.
    representation
        `z` of the images; used where the class is predicted.
    labels
        Class of each image; None to predict it.
    """
    names = (
        [classifier.classes[row] for row in classifier.logits(representation).argmax(axis=1)]
        if labels is None
        else [str(label) for label in labels]
    )
    return class_directions(classifier, names), names


def choose_images(
    manifest: pd.DataFrame, split: str | None, needs: Sequence[str], count: int, seed: int
) -> pd.DataFrame:
    """Random images of a split that have a value in each of the columns `needs`, by row.

    Where fewer than `count` images qualify, all of them.
    """
    usable = images_of_split(manifest, split, needs)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(usable, size=min(count, len(usable)), replace=False)
    return manifest.iloc[np.sort(chosen)]


def text_token_maps(
    model: object,
    images: Float[Tensor, "n 3 h w"],
    maps: Maps,
    texts: Float[np.ndarray, "k e"],
    neutral: Float[np.ndarray, " e"],
) -> Float[np.ndarray, "n k gh gw"]:
    """What the components take from each patch along texts, through their maps to CLIP space.

    Parameters
    ----------
    model
        A `VisionModel`, or a module that `decompose` takes.
    images
        Preprocessed images; they are decomposed one by one, as all `d` numbers of every token are
        needed where each component has a map of its own.
    maps
        Maps of the model's components.
    texts
        Unit text embeddings.
    neutral
        Mean embedding of many texts, taken off each: the embeddings of a CLIP share one large
        direction, which says nothing for one text against the others.
    """
    vectors = torch.from_numpy((texts - neutral).astype(np.float32))
    found = []
    for image in _on_device_of(model, images):
        parts = decompose(model, image[None], per="token")
        directions = maps.directions(vectors, len(parts.components))
        tokens = parts.values[0, :, parts.token_index].cpu()  # [c, t, d]
        summed = torch.einsum("ctd,cdk->kt", tokens, directions)
        found.append(summed.unflatten(1, parts.grid))
    return torch.stack(found).numpy()


def upsample(
    maps: Float[np.ndarray, "n gh gw"], size: tuple[int, int]
) -> Float[np.ndarray, "n h w"]:
    """Maps on the patch grid brought to `size` (height, width) by bilinear interpolation."""
    grid = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))[:, None]
    larger = torch.nn.functional.interpolate(grid, size, mode="bilinear", align_corners=False)
    return larger[:, 0].numpy()


def mass_in_mask(
    heat: Float[np.ndarray, "h w"], mask: Bool[np.ndarray, "h w"]
) -> tuple[float | None, float]:
    """Share of the positive part of a map inside a mask, and the mask's share of the area.

    A map that knows nothing of the object has a mass equal to the area; the mass is None where the
    map is nowhere positive.

    Raises
    ------
    DataError
        The sizes differ.
    """
    if heat.shape != mask.shape:
        raise DataError(
            f"the heat map is {heat.shape[0]}×{heat.shape[1]} pixels and its mask "
            f"{mask.shape[0]}×{mask.shape[1]}; both must have the size of the model's input"
        )
    positive = np.clip(heat, 0.0, None)
    total = float(positive.sum())
    mass = float(positive[mask].sum()) / total if total > 0 else None
    return mass, float(mask.mean())


def class_heatmaps(
    model: object,
    images: Float[Tensor, "n 3 h w"],
    classifier: LinearClassifier,
    labels: Sequence[str] | None = None,
) -> tuple[Float[np.ndarray, "n 1 gh gw"], list[list[str]]]:
    """Token maps of each image's class, and the name of that class.

    Parameters
    ----------
    model
        A `VisionModel`, or a module that `decompose` takes.
    images
        Preprocessed images.
    classifier
        Linear classifier on the representation.
    labels
        Class of each image; None for the class that is predicted.
    """
    z = representations(model, images)
    directions, names = image_directions(classifier, z, labels)
    return token_maps(model, images, directions)[:, None], [[name] for name in names]


@dataclass(frozen=True)
class Shown:
    """What is drawn: pictures as the model sees them, with their objects, maps and names.

    Attributes
    ----------
    image_ids
        Id of each image.
    pictures
        The model's crops.
    masks
        Where the objects are; nowhere where an image has no mask.
    maps
        Token maps, `k` of each image.
    names
        Class or text of each map.
    """

    image_ids: Sequence[str]
    pictures: UInt8[np.ndarray, "n h w 3"]
    masks: Bool[np.ndarray, "n h w"]
    maps: Float[np.ndarray, "n k gh gw"]
    names: Sequence[Sequence[str]]


def draw_heatmaps(
    shown: Shown, folder: Path, name: str, *, unit: str = "contribution"
) -> pd.DataFrame:
    """Overlays of all maps on a common scale, as `{folder}/{name}/{image}-{map}.png`.

    Parameters
    ----------
    shown
        Pictures, masks and maps.
    folder
        Folder of the table that the rows are for.
    name
        Folder of the pictures within it.
    unit
        Label of the colour bar.

    Returns
    -------
    DataFrame
        Rows of table `heatmaps`, without model and data set.
    """
    size = shown.pictures.shape[1:3]
    heats = np.stack([upsample(maps, size) for maps in shown.maps])
    scale = common_scale(heats)
    rows = []
    for i, image_id in enumerate(shown.image_ids):
        mask = shown.masks[i]
        for j, title in enumerate(shown.names[i]):
            file = f"{name}/{i}-{j}.png"
            mass, area = mass_in_mask(heats[i, j], mask) if mask.any() else (None, None)
            path, picture = folder / file, shown.pictures[i]
            draw_overlay(picture, heats[i, j], scale, path, title=title, mask=mask, unit=unit)
            rows.append((str(image_id), title, mass, area, file))
    columns = ["image_id", "direction", "mass", "area", "file"]
    return pd.DataFrame(rows, columns=columns).astype({"mass": float, "area": float})


def common_scale(maps: Float[np.ndarray, "*s"]) -> float:
    """Value at the ends of the colour bar, the same for all maps that are shown together."""
    scale = float(np.percentile(np.abs(maps), SCALE_PERCENTILE))
    return scale if scale > 0 else 1.0


def draw_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    heat: Float[np.ndarray, "h w"],
    scale: float,
    path: str | Path,
    *,
    title: str = "",
    mask: Bool[np.ndarray, "h w"] | None = None,
    unit: str = "contribution",
) -> None:
    """PNG with a map over the picture as the model sees it, and a colour bar.

    Parameters
    ----------
    image
        The model's crop of the picture.
    heat
        Map at the size of `image`.
    scale
        Value at the ends of the colour bar, from `common_scale`.
    path
        PNG to write; it appears complete or not at all.
    title
        Title above the picture.
    mask
        Object, drawn as an outline.
    unit
        Label of the colour bar.
    """
    height, width = image.shape[:2]
    size = (3.2 * width / height + 0.9, 3.2 + (0.25 if title else 0.0))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    norm = TwoSlopeNorm(0.0, -scale, scale)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    axis.imshow(grey, cmap="gray", vmin=-60, vmax=315)
    strength = np.clip(np.abs(heat) / scale, 0.0, 1.0)
    axis.imshow(heat, cmap=PALETTE, norm=norm, alpha=0.15 + 0.7 * strength)
    if mask is not None and mask.any() and not mask.all():
        axis.contour(mask, levels=[0.5], colors="black", linewidths=0.8)
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()
    colours = plt.cm.ScalarMappable(norm=norm, cmap=PALETTE)
    bar = figure.colorbar(colours, ax=axis, fraction=0.045, pad=0.02)
    bar.set_label(unit, fontsize=8)
    bar.set_ticks([-scale, 0.0, scale], labels=[f"{-scale:.2g}", "0", f"{scale:.2g}"], fontsize=8)
    try:
        with atomic_path(path) as beside:
            figure.savefig(beside, format="png", dpi=110)
    finally:
        plt.close(figure)
