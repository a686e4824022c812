"""Linear classifiers on the representation `z`: the model's own head, CLIP zero-shot, a probe.

All three are one matrix and one bias, so that the contributions of the components can be projected
on the class directions once and every ablated sum is read from there. What is ablated, and how the
accuracy changes, belongs in `ablation` and `spurious`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pipeline_lib.errors import DataError, close_matches

logger = logging.getLogger(__name__)

#: The ways to get a classifier; `auto` takes the first of them that fits model and labels.
KINDS = ("own", "zero_shot", "probe")

_OTHER = "or set `classifier: probe`, which learns the data set's own labels."
#: What to do where labels are no classes of a classifier of each kind.
_REMEDIES = {
    "own": f"Name labels as the model does (timm's ImageNet models: n01440764), {_OTHER}",
    "zero_shot": f"Mend the labels, {_OTHER}",
    "probe": "A probe knows the classes it learns from: every class needs images in the split that "
    "it is fitted on (`train`, or `reference_split`) and in the one that is measured.",
}


@dataclass(frozen=True)
class LinearClassifier:
    """Logits `z @ weight.T + bias` over named classes.

    Attributes
    ----------
    kind
        `own`, `zero_shot` or `probe`.
    classes
        Name of each row of `weight`; a name may occur twice where two classes of a published list
        share it, and then either row counts as that class.
    weight, bias
        Class directions in the space of the representation, and their offsets.
    """

    kind: str
    classes: tuple[str, ...]
    weight: Float[np.ndarray, "k d"]
    bias: Float[np.ndarray, " k"]

    def __post_init__(self) -> None:
        k = len(self.classes)
        if self.weight.ndim != 2 or self.weight.shape[0] != k or self.bias.shape != (k,):
            raise DataError(
                f"a classifier of {k} classes needs weights [{k}, d] and {k} biases; got "
                f"{list(self.weight.shape)} and {list(self.bias.shape)}"
            )

    @cached_property
    def codes(self) -> Int[np.ndarray, " k"]:
        """Number of the class that each row stands for: equal where names are equal."""
        return np.array([self.classes.index(name) for name in self.classes], dtype=np.int64)

    def encode(self, labels: Sequence[str]) -> Int[np.ndarray, " n"]:
        """Numbers (as in `codes`) of labels; a `DataError` names the labels that are no class."""
        check_labels(labels, self.classes, self.kind)
        number = dict(zip(self.classes, self.codes, strict=True))
        return np.array([number[str(label)] for label in labels], dtype=np.int64)

    def logits(self, representation: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Class logits of whole representations."""
        return representation @ self.weight.T + self.bias

    def project(self, contributions: Float[np.ndarray, "*s d"]) -> Float[np.ndarray, "*s k"]:
        """Share of each component in each class logit; with `bias`, they sum to `logits`."""
        # One product of two matrices: numpy is many times slower on stacks of them.
        flat = contributions.reshape(-1, contributions.shape[-1]) @ self.weight.T
        return flat.reshape(*contributions.shape[:-1], len(self.classes))

    def predict(self, logits: Float[np.ndarray, "*s k"]) -> Int[np.ndarray, "*s"]:
        """Number (as in `codes`) of the class with the largest logit."""
        return self.codes[np.argmax(logits, axis=-1)]

    def accuracy(self, logits: Float[np.ndarray, "n k"], truth: Int[np.ndarray, " n"]) -> float:
        """Share of images whose largest logit is the true class, 0 to 1."""
        return float(np.mean(self.predict(logits) == truth))


def check_labels(labels: Sequence[str], classes: Sequence[str], kind: str) -> None:
    """Raise a `DataError` that counts the labels which are no class, and names the first three."""
    known = set(classes)
    wrong = sorted({str(label) for label in labels} - known)
    if wrong:
        # A probe's labels are spelled as its classes are: nothing is meant by what is near.
        shown = "; ".join(
            repr(label) if kind == "probe" else f"{label!r} ({close_matches(label, known, most=3)})"
            for label in wrong[:3]
        )
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(
            f"{len(wrong)} labels of the data set are no class of the {kind} classifier "
            f"({len(known)} classes): {shown}{more}. {_REMEDIES[kind]}"
        )


def own_classifier(
    weight: Float[np.ndarray, "k d"],
    bias: Float[np.ndarray, " k"] | None,
    class_names: Sequence[str],
    labels: Sequence[str],
) -> LinearClassifier:
    """The model's own linear head, restricted to the classes that occur among `labels`.

    Parameters
    ----------
    weight, bias
        Parameters of the head that maps `z` to logits; `bias` None where it has none.
    class_names
        Name of each logit.
    labels
        Labels of the data set (repeats allowed). The restriction makes the accuracy one over the
        data set's classes: a head over shapes and colours is judged on shape by its shape logits.

    Raises
    ------
    DataError
        A label is not a class of the head.
    """
    check_labels(labels, class_names, "own")
    wanted = {str(label) for label in labels}
    rows = [row for row, name in enumerate(class_names) if name in wanted]
    offsets = np.zeros(len(weight)) if bias is None else np.asarray(bias)
    return LinearClassifier(
        kind="own",
        classes=tuple(class_names[row] for row in rows),
        weight=np.asarray(weight, dtype=np.float32)[rows],
        bias=offsets.astype(np.float32)[rows],
    )


def zero_shot_classifier(
    embeddings: Float[np.ndarray, "k d"], classes: Sequence[str], labels: Sequence[str]
) -> LinearClassifier:
    """CLIP zero-shot: one text embedding per class, restricted to the classes among `labels`.

    Parameters
    ----------
    embeddings
        Unit text embeddings of the classes in the space of the CLIP model's `z`. The largest inner
        product is the largest cosine, as every class vector has length 1.
    classes, labels
        Name of each row; labels of the data set.
    """
    check_labels(labels, classes, "zero_shot")
    wanted = {str(label) for label in labels}
    rows = [row for row, name in enumerate(classes) if name in wanted]
    weight = np.asarray(embeddings, dtype=np.float32)[rows]
    return LinearClassifier(
        kind="zero_shot",
        classes=tuple(classes[row] for row in rows),
        weight=weight / np.linalg.norm(weight, axis=1, keepdims=True),
        bias=np.zeros(len(rows), dtype=np.float32),
    )


def fit_probe(
    representation: Float[np.ndarray, "n d"],
    labels: Sequence[str],
    *,
    strength: float = 1.0,
    max_iter: int = 2000,
) -> LinearClassifier:
    """Logistic regression on the representation, as one linear classifier on raw `z`.

    Parameters
    ----------
    representation
        `z` of the images to learn from; standardised per dimension for the fit, with the
        standardisation folded into weight and bias afterwards.
    labels
        Class of each image.
    strength
        Inverse of the L2 penalty (scikit-learn's `C`).

    Raises
    ------
    DataError
        Fewer than two classes, or not finite values in the representation.
    """
    names = sorted({str(label) for label in labels})
    if len(names) < 2:
        raise DataError(
            f"a probe needs at least two classes in its reference split; got {names}. "
            "Choose another `reference_split` or another label column."
        )
    if not np.isfinite(representation).all():
        raise DataError("the representations to fit a probe on hold NaN or infinite values")
    data = np.asarray(representation, dtype=np.float64)
    centre, spread = data.mean(axis=0), data.std(axis=0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    model = _fit_logistic((data - centre) / spread, [str(v) for v in labels], strength, max_iter)
    weight, bias = _both_classes(model) / spread, _both_offsets(model)
    return LinearClassifier(
        kind="probe",
        classes=tuple(str(name) for name in model.classes_),
        weight=weight.astype(np.float32),
        bias=(bias - weight @ centre).astype(np.float32),
    )


def choose_kind(
    asked: str,
    labels: Sequence[str],
    class_names: Sequence[str] | None,
    is_clip: bool,
) -> str:
    """`own`, `zero_shot` or `probe`: what `asked` comes to for this model and these labels.

    Parameters
    ----------
    asked
        `own`, `zero_shot`, `probe`, or `auto`: own where the model has a head that covers the
        labels, zero-shot for CLIP models, else a probe.
    labels
        Labels of the data set.
    class_names
        Names of the own head's logits, None where the model has no head.
    is_clip
        Whether the representation lies in a CLIP space.

    Raises
    ------
    DataError
        The kind asked for does not exist for this model.
    """
    if asked == "auto":
        if class_names is not None and {str(label) for label in labels} <= set(class_names):
            return "own"
        return "zero_shot" if is_clip else "probe"
    if asked not in KINDS:
        raise DataError(
            f"unknown classifier {asked!r}; {close_matches(asked, (*KINDS, 'auto'))} "
            f"(valid: auto, {', '.join(KINDS)})"
        )
    if asked == "own" and class_names is None:
        raise DataError("the model has no classifier of its own; set `classifier: probe` or `auto`")
    if asked == "zero_shot" and not is_clip:
        raise DataError("zero_shot needs a CLIP model; set `classifier: probe` or `auto`")
    return asked


@dataclass(frozen=True)
class Head:
    """A model's own linear classifier, as its parameters and the names of its logits."""

    weight: Float[np.ndarray, "k d"]
    bias: Float[np.ndarray, " k"] | None
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class Reference:
    """Images that a probe may be fitted on: their representation and their labels."""

    representation: Float[np.ndarray, "n d"]
    labels: Sequence[str]


def head_of(classifier: Any, class_names: Sequence[str] | None) -> Head | None:
    """The linear layer of a loaded model as plain arrays; None where it has none.

    Parameters
    ----------
    classifier, class_names
        Attributes of the loaded model of these names.
    """
    if classifier is None or class_names is None:
        return None
    weight = classifier.weight.detach().cpu().float().numpy()
    bias = None if classifier.bias is None else classifier.bias.detach().cpu().float().numpy()
    return Head(weight, bias, tuple(class_names))


def reads_representation(
    head: Head, representation: Float[np.ndarray, "n d"], logits: Float[np.ndarray, "n k"]
) -> bool:
    """Whether a head is linear on `z`: some models have a nonlinear layer between the two.

    Parameters
    ----------
    head
        The model's linear layer.
    representation, logits
        `z` of some images, and the logits that the whole model gave for them.
    """
    if head.weight.shape[1] != representation.shape[1] or len(head.weight) != logits.shape[1]:
        return False
    bias = 0.0 if head.bias is None else head.bias
    found = representation @ head.weight.T + bias
    return bool(np.abs(found - logits).max() <= 1e-3 * max(1.0, float(np.abs(logits).max())))


def label_texts(
    texts: pd.DataFrame, target: str, labels: Sequence[str]
) -> dict[str, Float[np.ndarray, " e"]]:
    """Text embedding of each label, from the stored text features of a CLIP space.

    Parameters
    ----------
    texts
        Rows of table `text_features`.
    target
        Column that the labels are from: descriptors of a feature of this name are used too.
    labels
        Labels of the data set.

    Raises
    ------
    DataError
        A label has no text embedding.
    """
    classes = texts[texts["use"] == "class"]
    descriptors = texts[(texts["use"] == "concept") & (texts["feature"] == target)]
    known = {row.text: row.embedding for row in pd.concat([descriptors, classes]).itertuples()}
    check_labels(labels, list(known), "zero_shot")
    wanted = sorted({str(label) for label in labels})
    return {label: np.asarray(known[label], dtype=np.float32) for label in wanted}


def make_classifier(
    asked: str,
    labels: Sequence[str],
    *,
    head: Head | None = None,
    texts: Mapping[str, Float[np.ndarray, " e"]] | None = None,
    reference: Reference | None = None,
) -> LinearClassifier:
    """Classifier over the labels of a data set, of the kind asked for.

    Parameters
    ----------
    asked
        `own`, `zero_shot`, `probe` or `auto` (see `choose_kind`).
    labels
        Every label that is to be told apart.
    head
        The model's own classifier, if it has one.
    texts
        Label to its unit text embedding, for a CLIP model.
    reference
        What a probe is fitted on.

    Raises
    ------
    DataError
        The kind asked for does not exist for this model, or a label is not covered.
    """
    names = None if head is None else head.class_names
    kind = choose_kind(asked, labels, names, is_clip=texts is not None)
    logger.info("classifier: %s (asked for: %s)", kind, asked)
    if kind == "own" and head is not None:
        return own_classifier(head.weight, head.bias, head.class_names, labels)
    if kind == "zero_shot" and texts is not None:
        return zero_shot_classifier(np.stack(list(texts.values())), list(texts), labels)
    if reference is None:
        raise DataError(
            "a probe must be fitted on stored contributions, but this data set has none for this "
            "model; add it to `contributions.datasets`"
        )
    return fit_probe(reference.representation, reference.labels)


def _fit_logistic(
    data: Float[np.ndarray, "n d"], labels: list[str], strength: float, max_iter: int
) -> LogisticRegression:
    model = LogisticRegression(C=strength, max_iter=max_iter)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(data, labels)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        logger.warning("the probe stopped at %d iterations before it converged", max_iter)
    return model


def _both_classes(model: LogisticRegression) -> Float[np.ndarray, "k d"]:
    """One row per class, also for two classes, where scikit-learn keeps one."""
    coefficients = np.asarray(model.coef_)
    return np.vstack([-coefficients, coefficients]) / 2 if len(coefficients) == 1 else coefficients


def _both_offsets(model: LogisticRegression) -> Float[np.ndarray, " k"]:
    offsets = np.asarray(model.intercept_)
    return np.concatenate([-offsets, offsets]) / 2 if len(offsets) == 1 else offsets
