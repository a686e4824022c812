"""Images: decoding that is the same everywhere, and batches made ahead of the compute.

Paths may lead into a container (`pipeline_lib.containers`). Which images belong to a data set is in
`pipeline_lib.manifest`.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline_lib.containers import read_content
from pipeline_lib.errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

#: Endings of the files that are taken for images; others in a folder are passed over.
IMAGE_SUFFIXES = frozenset(
    {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

#: Pixels above which an image is refused: a small file may hold a picture that fills the memory.
MAX_PIXELS = 200_000_000


def read_image(path: str | Path, sha256: str | None = None) -> Image.Image:
    """The picture in a file as RGB, upright, fully decoded; every stage reads pictures with it.

    Parameters
    ----------
    path
        File, or member of a container, of any format that Pillow reads. Of several frames the
        first is taken.
    sha256
        Hash that the file's bytes must have, from the manifest.

    Returns
    -------
    PIL.Image.Image
        Mode RGB, turned as its EXIF orientation says. Grey and palette are expanded, 16 bits are
        brought to 8, and transparent pixels lie on white.

    Raises
    ------
    DataError
        If the file is missing, no image, truncated, too large, or not the one that was hashed.
    """
    path = Path(path)
    try:
        content = read_content(path)
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{path} is not the file that was listed in the manifest: it has changed since. "
            "Run snakemake again; only the shards of changed images are computed anew."
        )
    try:
        return decode_image(content)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def decode_image(content: bytes) -> Image.Image:
    """The picture in the bytes of a file, as `read_image` gives it.

    Raises
    ------
    DataError
        With the reason why there is no picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(
                        f"has {image.width}×{image.height} pixels; at most {MAX_PIXELS:,} are read"
                    )
                image.load()
                return _as_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        reason = "is empty" if not content else "is no image in a format that can be read"
        raise DataError(reason) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"has too many pixels; at most {MAX_PIXELS:,} are read") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"is damaged: {error}") from error  # what Pillow's decoders raise


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I;16", "I")):  # Pillow would clip at 255 instead of scaling
        grey = np.asarray(image).astype(np.float64) / 257.0
        return Image.fromarray(np.clip(grey.round(), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def image_batches(
    files: Sequence[Path],
    preprocess: Callable[[Image.Image], Float[Tensor, "3 h w"]],
    batch_size: int,
    *,
    hashes: Sequence[str] | None = None,
    workers: int = 2,
    pin_memory: bool = False,
) -> Iterator[tuple[slice, Float[Tensor, "b 3 h w"]]]:
    """Batches of preprocessed images in order, decoded ahead by threads.

    While the caller computes on one batch, `workers` threads decode the next two (Pillow decodes
    and resizes outside Python's lock).

    Parameters
    ----------
    files
        Paths of the images.
    preprocess
        From an RGB picture to a tensor.
    batch_size
        Images of a batch; the last may have fewer.
    hashes
        SHA-256 that each file must have.
    workers
        Threads.
    pin_memory
        Whether to put batches into pinned memory, for copies to a GPU beside the compute.

    Yields
    ------
    positions, images
        The slice of `files` that the batch holds, and the batch.

    Raises
    ------
    DataError
        If an image cannot be read.
    """
    import torch

    def one(number: int) -> Float[Tensor, "3 h w"]:
        return preprocess(read_image(files[number], hashes[number] if hashes else None))

    with ThreadPoolExecutor(max_workers=workers) as pool:
        waiting: deque[tuple[slice, list[Future[Tensor]]]] = deque()
        starts = iter(range(0, len(files), batch_size))

        def submit() -> None:
            start = next(starts, None)
            if start is not None:
                stop = min(start + batch_size, len(files))
                futures = [pool.submit(one, number) for number in range(start, stop)]
                waiting.append((slice(start, stop), futures))

        try:
            for _ in range(3):
                submit()
            while waiting:
                where, futures = waiting.popleft()
                batch = torch.stack([future.result() for future in futures])
                submit()
                yield where, batch.pin_memory() if pin_memory else batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
