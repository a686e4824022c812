"""Where to compute: one decision for every stage that runs a model, and what fits there."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from pipeline_lib.errors import ModelError

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

log = logging.getLogger(__name__)

Result = TypeVar("Result")


def gpu_present() -> bool:
    """Whether this machine has an NVIDIA GPU that is not hidden; does not import torch."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""


def compute_device() -> torch.device:
    """The GPU where there is one, with products in full float32, else the CPU.

    Hide the GPU (`CUDA_VISIBLE_DEVICES=`) to compute on the CPU.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa: sums would not be exact
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Halving(Generic[Result]):
    """Runs a function on batches, in halves where the device's memory does not hold them.

    What did not fit once is not tried again. The results are those of whole batches within
    rounding, as no result of an image depends on the others of its batch.

    Parameters
    ----------
    function
        From images to a result.
    """

    def __init__(self, function: Callable[[Float[Tensor, "n 3 h w"]], Result]) -> None:
        self.function = function
        self.most: int | None = None

    def __call__(self, images: Float[Tensor, "n 3 h w"]) -> Iterator[tuple[slice, Result]]:
        """The parts of a batch in order: which images, and their result.

        Raises
        ------
        ModelError
            If a single image does not fit.
        """
        import torch

        start = 0
        while start < len(images):
            size = min(self.most or len(images), len(images) - start)
            where = slice(start, start + size)
            try:
                result = self.function(images[where])
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise ModelError(
                        "one image alone does not fit into the memory of the GPU; free the GPU, or "
                        "hide it (CUDA_VISIBLE_DEVICES=) to compute on the CPU"
                    ) from error
                self.most = size // 2
                log.warning("out of memory with %d images; going on with %d", size, self.most)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            yield where, result
            start += size
