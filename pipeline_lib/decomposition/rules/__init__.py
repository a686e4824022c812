"""Rules: how the readout of an operation's result becomes that of its operand, by kind."""

from pipeline_lib.decomposition.rules import kernels, layers, parts
from pipeline_lib.decomposition.rules.base import RULES, Constant, Context, Pulled, pull
from pipeline_lib.decomposition.rules.norms import addend_factor, boxed, gate
from pipeline_lib.decomposition.rules.shapes import unbroadcast

__all__ = [
    "Constant",
    "Context",
    "Pulled",
    "RULES",
    "addend_factor",
    "boxed",
    "gate",
    "kernels",
    "layers",
    "parts",
    "pull",
    "unbroadcast",
]
