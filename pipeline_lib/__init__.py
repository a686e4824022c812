"""vit-atlas: what each part of a vision transformer contributes, in words.

The public verbs are `load_model`, `decompose` and `open_contributions`; they are imported on first
use, so that importing `pipeline_lib` (as every Snakemake job does to read the configuration) stays
fast and free of torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline_lib.decomposition import Decomposition, Plan, decompose, make_plan
    from pipeline_lib.labelled import open_contributions
    from pipeline_lib.models import VisionModel, load_model

__version__ = "0.1.0"

_PUBLIC = {
    "decompose": "pipeline_lib.decomposition",
    "make_plan": "pipeline_lib.decomposition",
    "Plan": "pipeline_lib.decomposition",
    "Decomposition": "pipeline_lib.decomposition",
    "load_model": "pipeline_lib.models",
    "VisionModel": "pipeline_lib.models",
    "open_contributions": "pipeline_lib.labelled",
}
__all__ = [
    "Decomposition", "Plan", "VisionModel", "decompose", "load_model", "make_plan",
    "open_contributions",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'pipeline_lib' has no attribute {name!r}")
