"""A loaded model's own classifier, where it has one that reads the representation itself."""

from __future__ import annotations

import logging

import numpy as np

from pipeline_lib.classify import Head, head_of, reads_representation
from pipeline_lib.config import Model
from pipeline_lib.dumps import Dump
from pipeline_lib.models import load_model

log = logging.getLogger("vit-atlas")

#: Images on which the head is compared with the logits that the whole model gave.
CHECKED = 32


def read_head(section: Model, dump: Dump) -> Head | None:
    """The model's classifier, checked against the logits in its dump; the model is loaded for it.

    None where the dump has no logits, or where the head stands behind a nonlinear layer.
    """
    if not dump.has_logits:
        return None
    model = load_model(section.id, weights=section.weights, **section.kwargs)
    head = head_of(model.classifier, model.class_names)
    index = np.arange(min(CHECKED, dump.n))
    if head and not reads_representation(head, dump.representation(index), dump.logits(index)):
        log.warning("the model's head is not linear in its representation; it is not used")
        return None
    return head
