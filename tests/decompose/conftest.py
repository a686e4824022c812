"""Tests of the decomposition: one thread, small models made once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from pipeline_lib._torchvision import ensure_torchvision

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
ensure_torchvision()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
