"""Where to compute: one decision for every stage that runs a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
