import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.errors import ArtifactError
from pipeline_lib.maps import Maps, identity_maps
from pipeline_lib.report.cards import exactness, neighbours, top_images


class FakeDump:
    """Contributions in memory, read like a stored dump."""

    def __init__(self, values, ids=None):
        self.values = np.asarray(values, dtype=np.float32)
        self.n, count, self.width = self.values.shape
        names = [f"part{i}" for i in range(count)]
        self.components = pd.DataFrame({"component": range(count), "id": names})
        self.manifest = pd.DataFrame({"image_id": ids or [f"i{k}" for k in range(self.n)]})

    def batches(self, size):
        return (np.arange(s, min(s + size, self.n)) for s in range(0, self.n, size))

    def contributions(self, index, components=None):
        chosen = slice(None) if components is None else list(components)
        return self.values[index][:, chosen]

    def error(self, index):
        return np.arange(self.n, dtype=np.float32)[index] * 1e-7


def labels(*texts):
    rows = [(c, f"part{c}", 0, text) for c, text in texts]
    return pd.DataFrame(rows, columns=["component", "id", "rank", "text"])


def pool(**vectors):
    rows = [("pool", text, np.asarray(vector, float)) for text, vector in vectors.items()]
    return pd.DataFrame(rows, columns=["use", "text", "embedding"])


def test_exactness_is_the_distribution_of_the_stored_error():
    row = exactness(FakeDump(np.zeros((101, 2, 3))), 1e-5, 1234, 2.5).iloc[0]
    assert (row["n"], row["components"], row["width"], row["bytes"]) == (101, 2, 3, 1234)
    assert row["median"] == pytest.approx(5e-6)
    assert row["worst"] == pytest.approx(1e-5)
    assert row["percentiles"] == pytest.approx(np.arange(101) * 1e-7, rel=1e-4)


def test_top_images_are_those_written_most_along_the_text():
    values = np.zeros((4, 2, 2))
    values[:, 0] = [[3, 0], [1, 9], [2, 0], [0, 0]]  # read along the first axis
    values[:, 1] = [[9, 0], [0, 1], [0, 3], [0, 2]]  # along the second
    found = top_images(
        FakeDump(values), identity_maps(2), labels((0, "x"), (1, "y")), pool(x=[1, 0], y=[0, 1]), 2
    )
    assert found.query("component == 0")["image_id"].tolist() == ["i0", "i2"]
    assert found.query("component == 1")["image_id"].tolist() == ["i2", "i3"]
    spread = np.std([3, 1, 2, 0])
    assert found["score"].iloc[0] == pytest.approx((3 - 1.5) / spread, rel=1e-5)


def test_top_images_go_through_the_map_of_the_component():
    values = np.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    swap = Maps("ridge", torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.zeros(2))
    found = top_images(FakeDump(values), swap, labels((0, "x")), pool(x=[1, 0]), 1)
    assert found["image_id"].tolist() == ["i1"]


def test_a_text_without_embedding_is_named():
    with pytest.raises(ArtifactError, match="'lost'"):
        top_images(
            FakeDump(np.zeros((2, 1, 2))), identity_maps(2), labels((0, "lost")), pool(x=[1, 0]), 1
        )


def test_a_rotated_copy_is_the_nearest_neighbour():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(60, 3, 6))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    other = rng.normal(size=(60, 3, 6))
    other[:, 2] = 5 * one[:, 0] @ turn + 3  # turned, scaled and shifted: the same geometry
    found = neighbours({"a": FakeDump(one), "b": FakeDump(other)})
    best = found.query("model == 'a' and component == 0").iloc[0]
    assert best["other_component"] == 2
    assert best["similarity"] == pytest.approx(1.0, abs=1e-5)
    chance = found.query("model == 'a' and component != 0")["similarity"]
    assert (chance.abs() < 0.3).all()


def test_constant_components_have_no_neighbours():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(20, 2, 4))
    values[:, 1] = 7.0
    found = neighbours({"a": FakeDump(values), "b": FakeDump(values)})
    assert set(found["component"]) == {0} and set(found["other_component"]) == {0}


def test_dumps_of_different_images_are_refused():
    values = np.zeros((10, 1, 2))
    one, other = FakeDump(values), FakeDump(values, [f"j{k}" for k in range(10)])
    with pytest.raises(ArtifactError, match="different images"):
        neighbours({"a": one, "b": other})


def test_too_few_images_give_no_row_and_a_warning(caplog):
    values = np.random.default_rng(2).normal(size=(3, 1, 2))
    found = neighbours({"a": FakeDump(values), "b": FakeDump(values)})
    assert found.empty and "too few" in caplog.text
