"""Fixtures of the applications' tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from planted import ArrayDump, planted_dump

torch.set_num_threads(1)  # the arrays are tiny: more threads only wait for each other


@pytest.fixture
def dump() -> ArrayDump:
    """Dump in which one component each carries shape, colour and scene."""
    return planted_dump()
