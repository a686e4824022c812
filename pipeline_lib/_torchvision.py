"""Makes `import torchvision` work beside a CPU-only torch.

A CUDA build of torchvision next to a CPU build of torch cannot register its compiled operators and
dies while it is imported, and timm and open_clip with it. Two of these operators only have to
*exist*: nothing here calls them.
"""

from __future__ import annotations

import importlib
import sys

_MISSING = "operator torchvision::nms does not exist"
_placeholders: list[object] = []  # torch drops operators when their library object is collected


def ensure_torchvision() -> None:
    """Import torchvision, with placeholders for its compiled operators where these are missing.

    Call it before timm or open_clip is imported. It does nothing on a healthy installation.

    Raises
    ------
    ImportError
        If torchvision is not installed.
    RuntimeError
        If torchvision cannot be imported for another reason.
    """
    if "torchvision" in sys.modules:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING not in str(error):
            raise
        _define_placeholders()
        importlib.import_module("torchvision")


def _define_placeholders() -> None:
    from torch.library import Library

    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _placeholders.append(library)
