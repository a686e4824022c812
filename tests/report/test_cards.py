import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pipeline_lib.decomposition import decompose
from pipeline_lib.errors import ArtifactError
from pipeline_lib.maps import Maps, identity_maps
from pipeline_lib.models import load_model
from pipeline_lib.report.cards import exactness, text_directions, top_images
from pipeline_lib.report.token_maps import component_token_maps, crop_of


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


def directions_of(maps, table, texts):
    return text_directions(maps, table, texts, components=len(table))


def test_top_images_are_those_written_most_along_the_direction():
    values = np.zeros((4, 2, 2))
    values[:, 0] = [[3, 0], [1, 9], [2, 0], [0, 0]]  # read along the first axis
    values[:, 1] = [[9, 0], [0, 1], [0, 3], [0, 2]]  # along the second
    along = {0: np.array([1.0, 0.0]), 1: np.array([0.0, 1.0])}
    found = top_images(FakeDump(values), labels((0, "x"), (1, "y")), along, 2)
    assert found.query("component == 0")["image_id"].tolist() == ["i0", "i2"]
    assert found.query("component == 1")["image_id"].tolist() == ["i2", "i3"]
    spread = np.std([3, 1, 2, 0])
    assert found["score"].iloc[0] == pytest.approx((3 - 1.5) / spread, rel=1e-5)


def test_directions_leave_out_what_all_texts_share():
    texts = pool(x=[9, 3, 0], y=[9, 0, 3], z=[9, -3, -3])
    found = directions_of(identity_maps(3), labels((0, "x"), (1, "y")), texts)
    np.testing.assert_allclose(found[0], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(found[1], [0, 0, 1], atol=1e-6)


def test_directions_go_through_the_map_of_the_component():
    swap = Maps("ridge", torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.zeros(2))
    found = directions_of(swap, labels((0, "x")), pool(x=[1, 0], y=[-1, 0]))
    np.testing.assert_allclose(found[0], [0, 1], atol=1e-6)


def test_a_text_without_embedding_is_named():
    with pytest.raises(ArtifactError, match="'lost'"):
        directions_of(identity_maps(2), labels((0, "lost")), pool(x=[1, 0], y=[0, 1]))


# Token maps


@pytest.fixture(scope="module")
def model():
    """A small model with class token, whose MLP is read at that token only."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    return load_model("timm:vit_tiny_patch16_224", pretrained=False, num_classes=0, **sizes)


def picture(name):
    noise = np.random.default_rng(int(name)).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def top(*rows):
    columns = ["component", "id", "text", "rank", "image_id", "score"]
    return pd.DataFrame([(*row, 1.0) for row in rows], columns=columns)


def test_token_maps_are_the_heads_own_share_of_the_direction(model):
    parts = decompose(model, torch.stack([model.preprocess(picture("3"))]))
    heads = parts.components[parts.components["kind"] == "head"]["component"].tolist()
    mlp = int(parts.components.index[parts.components["kind"] == "mlp"][0])
    rng = np.random.default_rng(1)
    along = {c: rng.normal(size=parts.values.shape[-1]) for c in [*heads, mlp]}
    asked = [(c, f"part{c}", "a text", rank, str(3 + rank)) for c in along for rank in range(5)]
    found = component_token_maps(model, picture, top(*asked), along)
    assert set(found["component"]) == set(heads)  # the class token takes nothing else from patches
    assert sorted(set(found["rank"])) == [0, 1, 2]
    for row in found.query("rank == 0").itertuples():
        assert (row.rows, row.columns, len(row.map)) == (4, 4, 16)
        whole = decompose(model, torch.stack([model.preprocess(picture("3"))]), per="token")
        tokens = whole.values[0, row.component] @ torch.tensor(along[row.component]).float()
        np.testing.assert_allclose(row.map, tokens[whole.token_index], rtol=1e-4, atol=1e-6)
        share = parts.values[0, row.component].double() @ torch.tensor(along[row.component])
        assert float(tokens.sum()) == pytest.approx(float(share), rel=1e-3, abs=1e-5)


class Cropping:
    """A model that resizes the shorter side to 50 and takes the middle 40 by 40 pixels."""

    def preprocess_mask(self, mask):
        width, height = mask.size
        scale = 50 / min(mask.size)
        mask = mask.resize((round(width * scale), round(height * scale)), Image.Resampling.NEAREST)
        left, top = (mask.size[0] - 40) // 2, (mask.size[1] - 40) // 2
        return np.asarray(mask.crop((left, top, left + 40, top + 40)))


def test_the_crop_is_found_whatever_the_geometry():
    found = crop_of(Cropping(), (200, 100))
    np.testing.assert_allclose(found, (0.3, 0.1, 0.7, 0.9), atol=0.01)
    upright = crop_of(Cropping(), (100, 200))
    np.testing.assert_allclose(upright, (0.1, 0.3, 0.9, 0.7), atol=0.01)
