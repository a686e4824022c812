"""Classifiers of a loaded model: its own, where it has one that reads the representation itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from pipeline_lib.artifacts import read_table
from pipeline_lib.classify import (
    Head,
    LinearClassifier,
    Reference,
    head_of,
    label_texts,
    make_classifier,
    reads_representation,
)
from pipeline_lib.dumps import open_dump
from pipeline_lib.errors import DataError
from pipeline_lib.heatmaps import representations
from pipeline_lib.models import VisionModel
from pipeline_lib.passes import images_of_split

log = logging.getLogger("vit-atlas")


def read_head(model: VisionModel) -> Head | None:
    """The model's classifier; None where it has none, or one behind a nonlinear layer.

    Whether it reads the representation is seen on noise, against the logits of the whole model.
    """
    head = None if model.is_clip else head_of(model.classifier, model.class_names)
    if head is None:
        return None
    noise = torch.rand(2, 3, *model.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model.module(noise.to(model.device)).cpu().numpy()
    if not reads_representation(head, representations(model, noise), logits):
        log.warning("the model's head is not linear in its representation; it is not used")
        return None
    return head


def map_classifier(
    model: VisionModel, manifest: pd.DataFrame, store: Sequence[str], path: str, texts: str
) -> LinearClassifier:
    """Classifier whose classes heat maps are drawn for.

    Over the labels of the data set by the first of: the model's own head, zero-shot, a probe fitted
    on the dump's train split. Without labels, or where the model's head knows others, and there is
    no dump to fit a probe on: the model's own head with all its classes.
    """
    head = read_head(model)
    labels = [] if "label" not in manifest else sorted(set(manifest["label"].dropna().astype(str)))
    if head is not None and not (labels and (store or set(labels) <= set(head.class_names))):
        labels = list(head.class_names)
    if not labels:
        raise DataError(
            "there is no class to draw a heat map for: the data set has no labels, and the model "
            "no classifier of its own; name the column of labels"
        )
    known = label_texts(read_table("text_features", texts), "label", labels) if texts else None
    reference = None
    if store and not texts:
        dump = open_dump(Path(store[0]).parent, path, projected=True)
        train = images_of_split(dump.manifest, "train", ["label"])
        seen = dump.manifest["label"].to_numpy()[train].tolist()
        reference = Reference(dump.representation(train), seen)
    return make_classifier("auto", labels, head=head, texts=known, reference=reference)
