"""Repair: an ablation written back as a module that takes the place of a model and its classifier.

What is taken out is the direct effect of the ablated components on the logits, image by image, and
what is put in is its mean; so the module holds the model, and reads those components off each pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn

from pipeline_lib.artifacts import atomic_path
from pipeline_lib.classify import LinearClassifier
from pipeline_lib.decomposition import decompose
from pipeline_lib.errors import ArtifactError, ModelError


class Repaired(nn.Module):
    """A model with a linear classifier, without the direct effect of some of its components.

    Its state dict is the model's, under `model.`, and the buffers `weight` [k, d], `bias` [k] and
    `shift` [k], the sum of the ablated components' mean shares in the logits.

    Parameters
    ----------
    model
        Model in eval mode, as `decompose` takes it.
    classifier
        Linear classifier on the model's representation.
    ablated
        Names of the components.
    shift
        Sum of their mean shares in each logit.

    Examples
    --------
    >>> logits = Repaired(model, probe, ["blocks.3.attn/head1"], shift)(images)  # doctest: +SKIP
    """

    def __init__(
        self,
        model: nn.Module,
        classifier: LinearClassifier,
        ablated: Sequence[str],
        shift: Float[np.ndarray, " k"],
    ) -> None:
        super().__init__()
        self.model = model
        self.classes = classifier.classes
        self.ablated = tuple(ablated)
        for name, values in (
            ("weight", classifier.weight),
            ("bias", classifier.bias),
            ("shift", shift),
        ):
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)).float())
        self.eval()

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n k"]:
        """Logits of preprocessed images."""
        weight, bias, shift = self.weight, self.bias, self.shift
        assert isinstance(weight, Tensor) and isinstance(bias, Tensor) and isinstance(shift, Tensor)
        parts = decompose(
            self.model, images, components=list(self.ablated) or [0], directions=weight
        )
        logits = parts.representation @ weight.T + bias
        return logits - parts.values.sum(dim=1) + shift if self.ablated else logits


def save_repair(
    path: str | Path,
    classifier: LinearClassifier,
    ablated: Sequence[str],
    shift: Float[np.ndarray, " k"],
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write what `Repaired` needs besides the model.

    Parameters
    ----------
    path
        Safetensors file.
    classifier, ablated, shift
        As for `Repaired`.
    facts
        JSON-able facts on the model, kept in the file.
    """
    values = {"weight": classifier.weight, "bias": classifier.bias, "shift": shift}
    about = {"classes": classifier.classes, "ablated": list(ablated), "facts": dict(facts or {})}
    with atomic_path(path) as beside:
        arrays = {k: np.ascontiguousarray(v, dtype=np.float32) for k, v in values.items()}
        save_file(arrays, beside, {"vit_atlas.repair": json.dumps(about)})


def load_repair(model: nn.Module, path: str | Path) -> Repaired:
    """The module that `save_repair` wrote, around the model it was made for.

    Raises
    ------
    ArtifactError
        The file is missing, damaged or of another kind.
    ModelError
        The model lacks one of the components.
    """
    try:
        with safe_open(path, "numpy") as content:
            about = json.loads((content.metadata() or {})["vit_atlas.repair"])
            values = {name: content.get_tensor(name) for name in ("weight", "bias", "shift")}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read as a repair ({error}); run snakemake to make it anew"
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"a torch.nn.Module is needed, not {type(model).__name__}")
    classifier = LinearClassifier(
        "probe", tuple(about["classes"]), values["weight"], values["bias"]
    )
    return Repaired(model, classifier, about["ablated"], values["shift"])
