"""Classifiers against scikit-learn, and their refusal of labels that do not fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from pipeline_lib.classify import (
    Head,
    LinearClassifier,
    Reference,
    choose_kind,
    fit_probe,
    head_of,
    label_texts,
    make_classifier,
    own_classifier,
    reads_representation,
    zero_shot_classifier,
)
from pipeline_lib.errors import DataError


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
def test_probe_equals_standardised_logistic_regression(names: tuple[str, ...]) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(names, 120)
    centres = 2.0 * rng.normal(size=(len(names), 8))
    data = rng.normal(size=(120, 8)) * 7 + 30 + centres[[names.index(v) for v in labels]]
    probe = fit_probe(data, list(labels))
    scaler = StandardScaler().fit(data)
    model = LogisticRegression(max_iter=2000).fit(scaler.transform(data), labels)
    fresh = rng.normal(size=(60, 8)) * 7 + 30
    ours = probe.logits(fresh)
    theirs = model.decision_function(scaler.transform(fresh))
    if len(names) == 2:
        np.testing.assert_allclose(ours[:, 1] - ours[:, 0], theirs, rtol=1e-3, atol=1e-3)
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    assert probe.classes == tuple(model.classes_)


def test_probe_survives_a_constant_dimension() -> None:
    data = np.array([[0.0, 5.0], [0.1, 5.0], [1.0, 5.0], [1.1, 5.0]])
    probe = fit_probe(data, ["a", "a", "b", "b"])
    truth = probe.encode(["a", "a", "b", "b"])
    assert probe.accuracy(probe.logits(data), truth) == 1.0


def test_contributions_project_to_the_logits() -> None:
    rng = np.random.default_rng(1)
    contributions = rng.normal(size=(5, 3, 4))
    classifier = own_classifier(rng.normal(size=(3, 4)), np.arange(3.0), list("abc"), list("abc"))
    np.testing.assert_allclose(
        classifier.project(contributions).sum(axis=1) + classifier.bias,
        classifier.logits(contributions.sum(axis=1)),
        rtol=1e-6,
    )


def test_own_classifier_is_restricted_to_the_labels() -> None:
    weight = np.eye(4)
    classifier = own_classifier(weight, None, ["red", "circle", "blue", "square"], ["blue", "red"])
    assert classifier.classes == ("red", "blue")
    # "circle" has the largest logit of all four, but is no colour.
    logits = classifier.logits(np.array([[0.3, 9.0, 0.4, 0.0]]))
    assert classifier.predict(logits).tolist() == classifier.encode(["blue"]).tolist()


def test_a_name_that_stands_for_two_classes_counts_for_either() -> None:
    classifier = own_classifier(
        np.eye(3), np.zeros(3), ["crane", "tench", "crane"], ["crane", "tench"]
    )
    truth = classifier.encode(["crane", "crane", "tench"])
    assert classifier.accuracy(np.eye(3)[[0, 2, 1]], truth) == 1.0


def test_zero_shot_takes_the_largest_cosine() -> None:
    texts = np.array([[2.0, 0.0], [0.0, 1.0]])  # lengths must not matter
    classifier = zero_shot_classifier(texts, ["sea", "land"], ["land", "sea"])
    logits = classifier.logits(np.array([[1.0, 1.5], [1.0, 0.9]]))
    assert [classifier.classes[i] for i in classifier.predict(logits)] == ["land", "sea"]


def test_labels_outside_the_classifier_are_all_named() -> None:
    with pytest.raises(
        DataError, match=r"2 labels .*'bleu' \(did you mean blue\?\).*'xyz'"
    ) as error:
        own_classifier(np.eye(2), None, ["red", "blue"], ["bleu", "xyz", "red"])
    assert "classifier: probe" in str(error.value)


def test_a_probe_says_what_it_needs_and_names_few_labels() -> None:
    names = [f"n{number:08d}" for number in range(1000)]
    probe = LinearClassifier("probe", tuple(names[:500]), np.zeros((500, 2)), np.zeros(500))
    with pytest.raises(DataError, match="500 labels .* and 497 more") as error:
        probe.encode(names)
    said = str(error.value)
    assert "every class needs images" in said and "set `classifier" not in said
    assert len(said) < 400 and said.count("'n") == 3
    own = LinearClassifier("own", tuple(names), np.zeros((1000, 2)), np.zeros(1000))
    with pytest.raises(DataError, match=r"\(valid: n00000000, n00000001, n00000002, …\)") as error:
        own.encode(["tench"])
    assert "as the model does" in str(error.value)


def test_shapes_of_weights_and_classes_must_agree() -> None:
    with pytest.raises(DataError, match="2 classes needs weights"):
        LinearClassifier("own", ("a", "b"), np.eye(3), np.zeros(3))


def test_probe_refuses_one_class_and_damaged_rows() -> None:
    with pytest.raises(DataError, match="at least two classes"):
        fit_probe(np.ones((3, 2)), ["a", "a", "a"])
    with pytest.raises(DataError, match="NaN"):
        fit_probe(np.array([[1.0, np.nan], [0.0, 1.0]]), ["a", "b"])


@pytest.mark.parametrize(
    ("asked", "names", "is_clip", "expected"),
    [
        ("auto", ["a", "b", "c"], False, "own"),
        ("auto", ["a"], False, "probe"),
        ("auto", None, True, "zero_shot"),
        ("auto", None, False, "probe"),
        ("probe", ["a", "b"], False, "probe"),
    ],
)
def test_kind_that_fits(asked: str, names: list[str] | None, is_clip: bool, expected: str) -> None:
    assert choose_kind(asked, ["a", "b"], names, is_clip) == expected


@pytest.mark.parametrize(
    ("asked", "message"),
    [("own", "no classifier of its own"), ("zero_shot", "needs a CLIP"), ("prob", "mean probe")],
)
def test_kind_that_does_not_exist(asked: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_kind(asked, ["a"], None, is_clip=False)


def test_the_classifier_that_fits_is_made() -> None:
    head = Head(np.eye(2), None, ("a", "b"))
    texts = {"a": np.array([1.0, 0.0]), "b": np.array([0.0, 1.0])}
    reference = Reference(np.array([[0.0, 0.0], [1.0, 1.0]]), ["a", "b"])
    assert make_classifier("auto", ["a", "b"], head=head, reference=reference).kind == "own"
    assert make_classifier("auto", ["a", "b"], texts=texts, reference=reference).kind == "zero_shot"
    assert make_classifier("auto", ["a", "b"], reference=reference).kind == "probe"
    assert make_classifier("probe", ["a", "b"], head=head, reference=reference).kind == "probe"
    other = Head(np.eye(2), None, ("x", "y"))
    assert make_classifier("auto", ["a", "b"], head=other, reference=reference).kind == "probe"


def test_a_probe_without_stored_contributions_is_refused() -> None:
    with pytest.raises(DataError, match=r"contributions\.datasets"):
        make_classifier("auto", ["a", "b"])


def test_texts_of_labels_come_from_classes_and_from_the_feature_of_that_name() -> None:
    texts = pd.DataFrame(
        [
            ("class", "", "circle", [1.0, 0.0]),
            ("concept", "colour", "red", [0.0, 1.0]),
            ("concept", "mood", "blue", [0.5, 0.5]),
            ("pool", "colours", "green", [0.5, 0.5]),
        ],
        columns=["use", "feature", "text", "embedding"],
    )
    assert label_texts(texts, "label", ["circle", "circle"])["circle"].tolist() == [1.0, 0.0]
    assert list(label_texts(texts, "colour", ["red"])) == ["red"]
    with pytest.raises(DataError, match=r"'blue' .*'green'"):
        label_texts(texts, "colour", ["green", "blue", "red"])


def test_the_head_of_a_model_gives_the_model_s_logits() -> None:
    layer = torch.nn.Linear(3, 2)
    head = head_of(layer, ["a", "b"])
    assert head is not None
    z = torch.randn(4, 3)
    classifier = own_classifier(head.weight, head.bias, head.class_names, ["a", "b"])
    np.testing.assert_allclose(classifier.logits(z.numpy()), layer(z).detach(), rtol=1e-5)
    assert head_of(None, ["a"]) is None


def test_a_head_behind_a_nonlinear_layer_is_told() -> None:
    layer = torch.nn.Linear(3, 2)
    head = head_of(layer, ["a", "b"])
    z = torch.randn(4, 3)
    assert head is not None
    assert reads_representation(head, z.numpy(), layer(z).detach().numpy())
    assert not reads_representation(head, z.numpy(), layer(z.tanh()).detach().numpy())
    assert not reads_representation(head, z.numpy()[:, :2], layer(z).detach().numpy())
