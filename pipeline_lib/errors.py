"""The exceptions this library raises for what a user can mend.

Every message says what is wrong, where, what would be valid, and what to do. A command or a rule
prints the message without a traceback; anything that is not a `VitAtlasError` is a bug of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitAtlasError(Exception):
    """Base of every error that a user can mend."""


class ConfigError(VitAtlasError):
    """The configuration file is wrong; the message lists every problem of the file."""


class DataError(VitAtlasError):
    """An image, table, mask or text file is missing, unreadable or does not fit."""


class ModelError(VitAtlasError):
    """A model id, its weights or its settings are wrong."""


class DecompositionRefused(ModelError):
    """The model's graph has an operation on the direct path that cannot be decomposed exactly."""


class ToleranceError(VitAtlasError):
    """The contributions do not sum to the representation within the tolerance."""


class ArtifactError(VitAtlasError):
    """A stored artifact is missing, incomplete, damaged or of another version."""


class DiskError(VitAtlasError):
    """What is to be written does not fit on the disk."""


def close_matches(wrong: str, valid: Iterable[str], n: int = 3, most: int = 12) -> str:
    """Phrase naming the `n` valid words nearest to a wrong one, else the first `most` of all.

    >>> close_matches("colur", ["colour", "shape"])
    'did you mean colour?'
    """
    words = sorted({str(word) for word in valid})
    near = difflib.get_close_matches(str(wrong), words, n=n, cutoff=0.6)
    if near:
        return f"did you mean {', '.join(near)}?"
    shown = ", ".join(words[:most]) + (", …" if len(words) > most else "")
    return f"valid: {shown}" if words else "there is no valid value here"
