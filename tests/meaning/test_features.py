"""Text embeddings: averaging, templates, references of texts only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from pipeline_lib.artifacts import read_table, write_table
from pipeline_lib.errors import DataError
from pipeline_lib.features import (
    Templates,
    class_phrases,
    concept_embeddings,
    embeddings_of,
    encode_prompts,
    read_reference_texts,
    read_templates,
    text_table,
    text_targets,
)
from pipeline_lib.text_pool import TextPool
from pipeline_lib.world.factors import FACTORS

RESOURCES = Path(__file__).resolve().parents[2] / "resources"
POOL = TextPool(("a red thing", "a dog"), ("colour", "animal"))


def hashed(texts: Sequence[str]) -> torch.Tensor:
    """Encoder that gives each text its own vector, not of unit length."""
    seeds = [sum((i + 1) * b for i, b in enumerate(text.encode())) for text in texts]
    return torch.stack([torch.randn(6, generator=torch.Generator().manual_seed(s)) for s in seeds])


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool(torch.allclose(first, second, atol=1e-6))


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


# Encoding


def test_prompts_are_averaged_as_unit_vectors_and_renormalised() -> None:
    templates = ("a photo of {}", "{} on the left", "{}")
    got = encode_prompts(hashed, ["cat", "dog"], templates)
    for row, text in zip(got, ["cat", "dog"], strict=True):
        vectors = unit(hashed([t.format(text) for t in templates]))
        assert same(row, unit(vectors.mean(0)))


def test_table_has_every_use_with_its_templates(tmp_path) -> None:
    templates = Templates(("a {}",), {"colour": ("something {}",)})
    table = text_table(
        hashed,
        concepts={"colour": ["red", "blue"], "shape": ["star"]},
        pool=POOL,
        classes={"star": "star", "n1": "tench", "red": "red"},
        words={"spurious": ["blue", "water"]},
        templates=templates,
    )
    write_table("text_features", table, tmp_path / "t.parquet")
    table = read_table("text_features", tmp_path / "t.parquet")
    prompts = {
        ("concept", "colour", "red"): "something red",
        ("concept", "colour", "blue"): "something blue",
        ("concept", "shape", "star"): "a star",
        ("class", "", "star"): "a star",
        ("class", "", "n1"): "a tench",
        ("class", "", "red"): "something red",
        ("word", "spurious", "blue"): "something blue",
        ("word", "spurious", "water"): "a water",
        ("pool", "colour", "a red thing"): "a red thing",
        ("pool", "animal", "a dog"): "a dog",
    }
    assert list(table[["use", "feature", "text"]].itertuples(index=False, name=None)) == list(
        prompts
    )
    for row, prompt in zip(table["embedding"], prompts.values(), strict=True):
        assert same(torch.tensor(row), unit(hashed([prompt]))[0])


def test_concepts_without_or_with_double_descriptors_are_refused_together() -> None:
    with pytest.raises(DataError) as caught:
        text_table(hashed, concepts={"colour": ["red", "red"], "shape": []}, pool=POOL)
    assert "'colour' has 'red' twice" in str(caught.value)
    assert "'shape' has no descriptors" in str(caught.value)


def test_embeddings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="not finite, first of 'red'"):
        text_table(lambda texts: hashed(texts) * np.nan, concepts={"c": ["red"]}, pool=POOL)


def test_parts_of_the_table() -> None:
    table = text_table(hashed, concepts={"colour": ["red", "blue"], "shape": ["star"]}, pool=POOL)
    concepts = concept_embeddings(table)
    assert list(concepts) == ["colour", "shape"]
    assert same(concepts["colour"], unit(hashed(["red", "blue"])))
    assert embeddings_of(table, "pool").shape == (2, 6)
    with pytest.raises(DataError, match="no text for word of 'core'"):
        embeddings_of(table, "word", "core")


def test_random_texts_are_encoded_bare_and_are_none_of_the_pool() -> None:
    words = ("dog red", "a thing")
    table = text_table(hashed, concepts={}, pool=POOL, random=words, templates=Templates(("a {}",)))
    assert same(embeddings_of(table, "random"), unit(hashed(list(words))))
    assert embeddings_of(table, "pool").shape == (2, 6)


def test_targets_of_labels() -> None:
    table = text_table(hashed, concepts={}, pool=POOL, classes={"cat": "cat", "dog": "dog"})
    images = pd.DataFrame({"label": ["dog", "cat", "dog"]})
    got = text_targets(table, images, "label_text")
    assert same(got, unit(hashed(["dog", "cat", "dog"])))
    with pytest.raises(DataError, match="1 images have no label") as caught:
        text_targets(table, pd.DataFrame({"label": ["dog", None, "cow"]}), "label_text")
    assert "'cow' has no text embedding" in str(caught.value)


def test_targets_of_captions_are_those_of_the_bare_captions() -> None:
    said = ["a dog runs", "a cat sleeps", "a dog runs"]
    templates = Templates(("a photo of {}",))
    table = text_table(hashed, concepts={}, pool=POOL, captions=said, templates=templates)
    assert (table["use"] == "caption").sum() == 2
    got = text_targets(table, pd.DataFrame({"caption": said}), "caption_text")
    assert same(got, unit(hashed(said)))
    with pytest.raises(DataError, match="1 images have no caption"):
        text_targets(table, pd.DataFrame({"caption": ["a dog runs", None]}), "caption_text")


def test_imagenet_ids_are_encoded_by_their_first_lemma() -> None:
    phrases = class_phrases(["n01440764", "landbird", "n99999999"])
    assert phrases == {"n01440764": "tench", "landbird": "landbird", "n99999999": "n99999999"}


# Templates


def test_shipped_templates_and_concepts_fit_the_world() -> None:
    concepts = yaml.safe_load((RESOURCES / "concepts" / "world.yaml").read_text())
    assert {name: tuple(values) for name, values in concepts.items()} == dict(FACTORS)
    templates = read_templates(RESOURCES / "prompts" / "world.txt")
    assert set(templates.by_feature) == set(FACTORS)
    assert templates.of("colour")[0].format("red") == "a photo of something red"
    assert templates.of("other") == templates.general != ("{}",)


def test_imagenet_templates_by_name_and_by_file() -> None:
    templates = read_templates("openai_imagenet")
    assert len(templates.general) == 80
    assert templates.general[0] == "a bad photo of a {}."
    assert read_templates(RESOURCES / "prompts" / "imagenet_80.txt") == templates


def test_no_templates_is_the_bare_text() -> None:
    assert read_templates(None).plain
    assert not read_templates("simple_imagenet").plain


def test_bad_templates_are_listed(tmp_path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("a {}\nno place\na {} and {}\na {}\n@openai_imagent\na {0}\n")
    with pytest.raises(DataError) as caught:
        read_templates(path)
    message = str(caught.value)
    for expected in ("line 2", "line 3", "line 4: 'a {}' stands twice", "line 6"):
        assert expected in message
    assert "did you mean openai_imagenet" in message
    path.write_text("# nothing\n")
    with pytest.raises(DataError, match="no templates"):
        read_templates(path)


# References of texts only


def reference(folder: Path, names: str, array: np.ndarray, column: str | None = None, name="n.txt"):
    np.save(folder / "e.npy", array)
    (folder / name).write_text(names)
    return read_reference_texts(folder / "e.npy", folder / name, column)


@pytest.mark.parametrize("transposed", [False, True])
def test_named_embeddings_are_looked_up(tmp_path, transposed: bool) -> None:
    array = np.arange(1.0, 13.0).reshape(3, 4)
    given = reference(tmp_path, "cat\ndog\nold car\n", array.T if transposed else array)
    want = unit(torch.tensor(array[[2, 0]], dtype=torch.float32))
    assert same(given.encode_text(["old car", "cat"]), want)
    assert given.pool().texts == ("cat", "dog", "old car")


def test_names_with_ids_can_be_asked_both_ways(tmp_path) -> None:
    names = "n00000001 crane\nn00000002 tench, Tinca tinca\nn00000003 crane\n"
    given = reference(tmp_path, names, np.eye(3))
    assert given.pool().texts == ("crane (n00000001)", "tench, Tinca tinca", "crane (n00000003)")
    wanted = ["n00000003", "tench, Tinca tinca", "n00000002", "crane (n00000001)"]
    assert given.encode_text(wanted).argmax(1).tolist() == [2, 1, 1, 0]
    with pytest.raises(DataError, match="'crane' is the name of several: use one of n00000001, n0"):
        given.encode_text(["crane"])


def test_names_from_a_column(tmp_path) -> None:
    given = reference(tmp_path, "id,words\n1,cat\n2,dog\n", np.eye(2), "words", "n.csv")
    assert given.names == ("cat", "dog")
    with pytest.raises(DataError, match="did you mean words"):
        reference(tmp_path, "id,words\n1,cat\n2,dog\n", np.eye(2), "word", "n.csv")


def test_unknown_names_are_listed_with_the_closest(tmp_path) -> None:
    given = reference(tmp_path, "cat\ndog\n", np.eye(2))
    with pytest.raises(DataError) as caught:
        given.encode_text(["cta", "dog", "horse"])
    assert "'cta' is none of the 2 names; did you mean cat?" in str(caught.value)
    assert "'horse'" in str(caught.value)


def test_shapes_and_names_that_do_not_fit_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"shape \(3, 4\), but .* has 2 names"):
        reference(tmp_path, "cat\ndog\n", np.ones((3, 4)))
    with pytest.raises(DataError, match="'cat' stands twice"):
        reference(tmp_path, "cat\ncat\n", np.eye(2))
    with pytest.raises(DataError, match="NaN"):
        reference(tmp_path, "cat\ndog\n", np.full((2, 3), np.nan))
    (tmp_path / "e.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot be read as \.npy"):
        read_reference_texts(tmp_path / "e.npy", tmp_path / "n.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_reference_texts(tmp_path / "e.npy", tmp_path / "absent.txt")


def test_pickled_arrays_are_refused(tmp_path) -> None:
    np.save(tmp_path / "e.npy", np.array([{"a": 1}], dtype=object))
    (tmp_path / "n.txt").write_text("cat\n")
    with pytest.raises(DataError, match=r"cannot be read as \.npy"):
        read_reference_texts(tmp_path / "e.npy", tmp_path / "n.txt")
