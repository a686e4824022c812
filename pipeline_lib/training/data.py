"""Training images: a pool rendered once, kept in a folder, and read in shuffled batches."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline_lib.errors import DataError
from pipeline_lib.world.factors import FACTORS, sample_factors
from pipeline_lib.world.render import render

logger = logging.getLogger(__name__)

SIDE = 96
CHUNK = 256
MEAN, STD = 0.45, 0.25  # of every channel, near those of the world's pictures


@dataclass(frozen=True)
class Pool:
    """Rendered images of the world with the codes of their factors.

    Attributes
    ----------
    images
        uint8 `[n, 96, 96, 3]`.
    codes
        int8 `[n, factors]`: position of each value in `FACTORS`.
    """

    images: np.ndarray
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def factors(self, number: int) -> dict[str, str]:
        """Factor values of one image."""
        row = self.codes[number]
        pairs = zip(FACTORS.items(), row, strict=True)
        return {name: values[code] for (name, values), code in pairs}


def load_pool(folder: str | Path, n: int, seed: int, workers: int = 1) -> Pool:
    """The first `n` images of the world with this seed, rendered when the folder lacks them.

    Parameters
    ----------
    folder
        Where pools are kept, as `pool-<seed>-<n>.npy` (28 KB an image); may be deleted any time.
    n, seed
        Number of images, and seed of the world.
    workers
        Processes that render.

    Raises
    ------
    DataError
        If `n` < 1 or the folder cannot be written.
    """
    if n < 1:
        raise DataError(f"a pool needs at least one image, got n={n}")
    path = Path(folder) / f"pool-{seed}-{n}.npy"
    if not path.exists():
        _render_pool(path, n, seed, workers)
    codes = np.array([encode(sample_factors(seed, index)) for index in range(n)], np.int8)
    return Pool(images=np.load(path), codes=codes)


def encode(factors: dict[str, str]) -> list[int]:
    """Position of each factor's value in `FACTORS`."""
    return [values.index(factors[name]) for name, values in FACTORS.items()]


def _render_pool(path: Path, n: int, seed: int, workers: int) -> None:
    logger.info("rendering %d images into %s", n, path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    starts = range(0, n, CHUNK)
    draw = partial(_render_chunk, seed, n)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        images = np.lib.format.open_memmap(part, "w+", np.uint8, (n, SIDE, SIDE, 3))
        for start, chunk in zip(starts, _mapped(draw, starts, workers), strict=True):
            images[start : start + len(chunk)] = chunk
        images.flush()
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"cannot write the training images to {path}: {error}") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _mapped(draw: Callable[[int], np.ndarray], starts: range, workers: int) -> Iterator[np.ndarray]:
    if workers == 1:
        yield from map(draw, starts)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes:
        yield from processes.map(draw, starts)


def _render_chunk(seed: int, n: int, start: int) -> np.ndarray:
    stop = min(start + CHUNK, n)
    return np.stack([render(sample_factors(seed, i), seed, i).image for i in range(start, stop)])


def normalise(images: UInt8[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Images as the models take them: channels first, `MEAN` and `STD` removed."""
    return ((images.permute(0, 3, 1, 2).float() / 255) - MEAN) / STD


def shifted(
    images: UInt8[Tensor, "n h w 3"], rng: torch.Generator, reach: int = 4
) -> UInt8[Tensor, "n h w 3"]:
    """Images moved by up to `reach` pixels each way, the edge repeated."""
    n, h, w, _ = images.shape
    rows = torch.arange(h) + torch.randint(-reach, reach + 1, (n, 1), generator=rng)
    columns = torch.arange(w) + torch.randint(-reach, reach + 1, (n, 1), generator=rng)
    rows, columns = rows.clamp(0, h - 1), columns.clamp(0, w - 1)
    return images[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def mirrored(images: UInt8[Tensor, "n h w 3"], rng: torch.Generator) -> UInt8[Tensor, "n h w 3"]:
    """Images of which every second one on average is mirrored left to right."""
    flip = torch.rand(len(images), generator=rng) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(2), images)


def relit(images: Float[Tensor, "n 3 h w"], rng: torch.Generator) -> Float[Tensor, "n 3 h w"]:
    """Normalised images with brightness and contrast changed by up to a fifth."""
    gain = 1 + 0.4 * (torch.rand(len(images), 1, 1, 1, generator=rng) - 0.5)
    offset = 0.4 * (torch.rand(len(images), 1, 1, 1, generator=rng) - 0.5)
    return images * gain + offset


def batches(n: int, batch: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Image numbers of each training step: `steps` batches out of fresh shuffles of all `n`.

    Raises
    ------
    DataError
        If a batch is larger than the pool.
    """
    if batch > n:
        raise DataError(f"a batch of {batch} images needs a pool at least as large, got {n}")
    rng = np.random.default_rng([seed, 7])
    order = np.empty(0, np.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = np.concatenate([order, rng.permutation(n)])
        chosen, order = order[:batch], order[batch:]
        yield np.sort(chosen)


def alike_batches(
    pool: Pool, batch: int, group: int, steps: int, seed: int, factors: tuple[str, ...]
) -> Iterator[np.ndarray]:
    """Image numbers of each training step, in groups that share the values of some factors.

    Parameters
    ----------
    pool
        Images to draw from.
    batch, group
        Images of a step, and of a group; a group is smaller where the pool has fewer such images,
        and then filled up with any images.
    steps, seed
        Number of batches, and seed of the draw.
    factors
        What the images of a group have in common.

    Raises
    ------
    DataError
        If a batch is larger than the pool.
    """
    if batch > len(pool):
        raise DataError(f"a batch of {batch} images needs a pool at least as large: {len(pool)}")
    rng = np.random.default_rng([seed, 13])
    columns = [list(FACTORS).index(name) for name in factors]
    _, kinds = np.unique(pool.codes[:, columns], axis=0, return_inverse=True)
    members = [np.flatnonzero(kinds == kind) for kind in range(kinds.max() + 1)]
    for _ in range(steps):
        chosen: set[int] = set()
        for kind in rng.permutation(len(members))[: batch // group]:
            images = members[kind]
            chosen.update(rng.choice(images, min(group, len(images)), replace=False).tolist())
        rest = np.setdiff1d(np.arange(len(pool)), list(chosen))
        filled = [*chosen, *rng.choice(rest, batch - len(chosen), replace=False).tolist()]
        yield np.sort(np.array(filled))
