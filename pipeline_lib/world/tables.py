"""Image sets of the demo world on disk: pictures, masks and one table that describes them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from hashlib import blake2b
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from pipeline_lib.errors import DataError
from pipeline_lib.world.captions import caption
from pipeline_lib.world.factors import (
    CAPTION_STREAM,
    CLASSES,
    PLACES,
    USUAL_PLACE,
    class_of,
    place_of,
    random_stream,
    sample_factors,
)
from pipeline_lib.world.render import render

logger = logging.getLogger(__name__)

TABLE = "table.parquet"
CHUNK = 64

Row = dict[str, str]


def split_of(index: int) -> str:
    """Split of an image of the world, from a hash of its index: 80 % train, 10 % val, 10 % test."""
    part = blake2b(str(index).encode(), digest_size=4).digest()
    share = int.from_bytes(part, "big") / 2**32
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def write_world(
    folder: str | Path, n: int, seed: int = 0, start: int = 0, workers: int = 1
) -> Path:
    """Render `n` images of the world into a folder.

    Writes `images/*.png` (96×96 RGB), `masks/*.png` (0 or 255) and `table.parquet` with the columns
    `path`, `mask` (relative to the folder), `split`, `label` (the shape), one column per factor,
    and `caption`. Each file appears complete or not at all, the table last.

    Parameters
    ----------
    folder
        Made when missing. Files of the same name are replaced.
    n
        Number of images, ≥ 1.
    seed
        Seed of the world, ≥ 0.
    start
        Index of the first image, ≥ 0: different ranges of one seed never share an image.
    workers
        Processes that render.

    Returns
    -------
    pathlib.Path
        The table.

    Raises
    ------
    DataError
        If a number is out of range or the folder cannot be written.
    """
    _check_numbers(n=(n, 1), seed=(seed, 0), start=(start, 0), workers=(workers, 1))
    factors = [sample_factors(seed, index) for index in range(start, start + n)]
    rows = _write_images(Path(folder), factors, seed, start, workers)
    for number, row in enumerate(rows):
        row |= {"split": split_of(start + number), "label": row["shape"]}
    return _write_table(Path(folder), rows, first=("path", "mask", "split", "label"))


def write_spurious(
    folder: str | Path,
    n_train: int,
    n_test: int,
    seed: int,
    correlation: float = 0.95,
    n_val: int | None = None,
    workers: int = 1,
    object_scale: float = 0.6,
) -> Path:
    """Render a set whose classes are tied to the background in the train images only.

    The situation of Waterbirds: the class (`curved` or `angular` shapes) follows the place
    (`water` or `land`) of the scene in a share `correlation` of the train images; in the val and
    test images the four groups are equally frequent (to one image). Files as in `write_world`;
    the label is the class, and the columns `class`, `place` and `group` (such as
    `angular-on-water`) are added.

    Parameters
    ----------
    folder
        Made when missing. Files of the same name are replaced.
    n_train, n_test
        Number of images of these splits, ≥ 1.
    seed
        Seed of the world, ≥ 0.
    correlation
        Share of train images of each class at its usual place, 0 to 1.
    n_val
        Number of val images; half of `n_test` when not given.
    workers
        Processes that render.
    object_scale
        Factor of the objects' radii, 0.2 to 1. Small objects are harder to tell than the scene,
        as in Waterbirds; otherwise a model that knows the shapes well has no use for the cue.

    Returns
    -------
    pathlib.Path
        The table.

    Raises
    ------
    DataError
        If a number is out of range or the folder cannot be written.
    """
    n_val = n_test // 2 if n_val is None else n_val
    _check_numbers(n_train=(n_train, 1), n_test=(n_test, 1), seed=(seed, 0), n_val=(n_val, 0))
    if not 0 <= correlation <= 1:
        raise DataError(f"correlation must be between 0 and 1, got {correlation}")
    groups = _tied_groups(n_train, seed, correlation)
    groups += _balanced_groups(n_val, seed, 1) + _balanced_groups(n_test, seed, 2)
    factors = [_factors_of_group(seed, index, *group) for index, group in enumerate(groups)]
    rows = _write_images(Path(folder), factors, seed, 0, workers, object_scale)
    splits = ["train"] * n_train + ["val"] * n_val + ["test"] * n_test
    for row, split in zip(rows, splits, strict=True):
        kind, place = class_of(row["shape"]), place_of(row["scene"])
        row |= {"split": split, "label": kind, "class": kind}
        row |= {"place": place, "group": f"{kind}-on-{place}"}
    first = ("path", "mask", "split", "label", "class", "place", "group")
    return _write_table(Path(folder), rows, first)


def _tied_groups(n: int, seed: int, correlation: float) -> list[tuple[str, str]]:
    rng = np.random.default_rng([seed, 0])
    groups = []
    for number, kind in enumerate(CLASSES):
        members = n // 2 + (number < n % 2)
        usual = round(correlation * members)
        other = next(place for place in PLACES if place != USUAL_PLACE[kind])
        groups += [(kind, USUAL_PLACE[kind])] * usual + [(kind, other)] * (members - usual)
    return [groups[number] for number in rng.permutation(n)]


def _balanced_groups(n: int, seed: int, stream: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng([seed, stream])
    every = [(kind, place) for kind in CLASSES for place in PLACES]
    return [every[number % len(every)] for number in rng.permutation(n)]


def _factors_of_group(seed: int, index: int, kind: str, place: str) -> Row:
    """Factors of an image of a group: the other factors stay independent and uniform."""
    factors = sample_factors(seed, index)
    rng = np.random.default_rng([seed, index, 99])
    shapes, scenes = CLASSES[kind], PLACES[place]
    return factors | {
        "shape": shapes[rng.integers(len(shapes))],
        "scene": scenes[rng.integers(len(scenes))],
    }


def _check_numbers(**limits: tuple[int, int]) -> None:
    problems = [
        f"{name} must be ≥ {least}, got {value}"
        for name, (value, least) in limits.items()
        if value < least
    ]
    if problems:
        raise DataError("image set of the demo world: " + "; ".join(problems))


def _write_images(
    folder: Path,
    factors: list[Row],
    seed: int,
    start: int,
    workers: int,
    object_scale: float = 1.0,
) -> list[Row]:
    with _clear_errors(folder):
        for name in ("images", "masks"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write = partial(_write_image, folder, seed, object_scale)
        indices = range(start, start + len(factors))
        if workers == 1:
            return list(map(write, indices, factors))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            return list(pool.map(write, indices, factors, chunksize=CHUNK))


def _write_image(folder: Path, seed: int, object_scale: float, index: int, factors: Row) -> Row:
    rendered = render(factors, seed, index, object_scale=object_scale)
    name = f"{index:06d}.png"
    _write_whole(folder / "images" / name, partial(_save_png, rendered.image))
    _write_whole(folder / "masks" / name, partial(_save_png, rendered.mask.astype(np.uint8) * 255))
    text = caption(factors, random_stream(seed, index, CAPTION_STREAM))
    return {"path": f"images/{name}", "mask": f"masks/{name}", **factors, "caption": text}


def _save_png(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(path, format="PNG")


def _write_table(folder: Path, rows: list[Row], first: tuple[str, ...]) -> Path:
    table = pd.DataFrame(rows)
    table = table[[*first, *(name for name in table.columns if name not in first)]]
    path = folder / TABLE
    with _clear_errors(folder):
        _write_whole(path, lambda part: table.to_parquet(part, index=False))
    logger.info("wrote %d images and %s", len(rows), path)
    return path


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside the file and rename, so that the file is complete or absent."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


class _clear_errors:
    """Turns a failed write into a `DataError` that names the folder and the cure."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise DataError(
                f"cannot write the image set to {self.folder}: {error.strerror or error}; "
                "free some space or choose a folder that can be written"
            ) from error
