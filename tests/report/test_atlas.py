import base64

import numpy as np
import pandas as pd
import pytest

from pipeline_lib.report.atlas import atlas, rows_of
from pipeline_lib.report.pictures import PictureBook
from pipeline_lib.roles import NO_ROLE


def parts(*rows):
    table = pd.DataFrame(rows, columns=["kind", "layer", "block", "head"])
    return table.assign(id=[f"part{i}" for i in range(len(table))])


def test_rows_of_a_plain_transformer():
    table = parts(
        ("stem", -1, -1, -1),
        ("head", 0, 0, 0), ("head", 0, 0, 1), ("mlp", 1, 0, -1),
        ("head", 2, 1, 0), ("head", 2, 1, 1), ("mlp", 3, 1, -1),
        ("bias", 4, -1, -1),
    )  # fmt: skip
    assert rows_of(table) == [
        (0, "stem"), (1, "0"), (1, "1"), (1, "mlp"), (2, "0"), (2, "1"), (2, "mlp"), (3, "bias"),
    ]  # fmt: skip


def test_a_block_with_two_attentions_takes_two_rows():
    table = parts(
        ("conv", 0, 0, -1),
        ("head", 1, 0, 0), ("head", 1, 0, 1), ("mlp", 2, 0, -1),
        ("head", 3, 0, 0), ("head", 3, 0, 1), ("mlp", 4, 0, -1),
    )  # fmt: skip
    assert rows_of(table) == [
        (0, "conv"), (0, "0"), (0, "1"), (0, "mlp"), (1, "0"), (1, "1"), (1, "mlp"),
    ]  # fmt: skip


def test_rows_follow_the_layers_whatever_the_order_of_the_table():
    table = parts(("mlp", 1, 0, -1), ("attention", 0, 0, -1), ("stem", -1, -1, -1))
    assert rows_of(table) == [(1, "mlp"), (1, "attention"), (0, "stem")]


def test_no_two_components_share_a_place(run):
    for _, table in run["components"].query("dataset == 'world'").groupby("model"):
        places = rows_of(table.reset_index(drop=True))
        assert len(set(places)) == len(places)


def test_payload_holds_the_tables_numbers(run):
    book = PictureBook(run.root, run.folders, run["manifest"])
    data = atlas(run, book)
    assert [model["name"] for model in data["models"]] == ["clip-small", "deit", "swin"]
    deit = {part["id"]: part for part in data["models"][1]["components"]}
    card = deit["blocks.5.attn/head1"]
    rows = run["scores"].query("model == 'deit' and id == 'blocks.5.attn/head1'")
    scores = rows.set_index("feature")["score"]
    for feature in data["features"]:
        value, low, high, q_value = card["values"][f"score:{feature}"]
        assert q_value == 0.02
        assert value == pytest.approx(scores[feature], rel=1e-3)
        assert low < value < high
    single = run["ablation"].query("model == 'deit' and target == 'shape'")
    full = single.query("curve == 'none'")["accuracy"].iloc[0]
    without = single.query("ablated == 'blocks.5.attn/head1'")["accuracy"].iloc[0]
    assert card["values"]["drop:shape"] == [pytest.approx(full - without, rel=1e-3, abs=1e-6)]
    assert len(card["texts"]) == 6 and len(card["images"]) == 6
    labels = run["labels"].query("model == 'deit' and id == 'blocks.5.attn/head1'")
    kinds = ["", "_random_texts", "_random", "_pca"]  # in the order of the card's columns
    shares = labels[["variance", *(f"cumulative{kind}" for kind in kinds)]]
    for text, row in zip(card["texts"], shares.to_numpy(), strict=True):
        assert text[2:] == pytest.approx(row.tolist(), rel=1e-3)
    assert {near[0] for near in card["near"]} == {"clip-small", "deit", "swin"}
    similarity = [near[2] for near in card["near"]]
    assert similarity == sorted(similarity, reverse=True)
    assert deit["bias"]["role"] is None and deit["bias"]["texts"] == []


def test_the_role_is_the_tables(run):
    book = PictureBook(run.root, run.folders, run["manifest"])
    data = atlas(run, book)
    table = run["roles"].set_index(["model", "id"])
    for model in data["models"]:
        for part in model["components"]:
            row = table.loc[(model["name"], part["id"])] if part["role"] else None
            if row is not None:
                assert part["role"]["name"] == row["role"]
                assert part["role"]["share"] == pytest.approx(row["share"], rel=1e-3)
                assert part["role"]["of"] == row["texts"]
    assert set(data["roles"]) == {*table["role"], NO_ROLE}


def test_token_maps_share_a_scale_and_keep_their_signs(run):
    book = PictureBook(run.root, run.folders, run["manifest"])
    model = atlas(run, book)["models"][1]
    part = next(part for part in model["components"] if part["id"] == "blocks.5.attn/head1")
    rows = run["token_maps"].query("model == 'deit' and id == 'blocks.5.attn/head1'")
    assert [one["image"] for one in part["maps"]] == [f"world/{i}" for i in rows["image_id"]]
    read = [np.frombuffer(base64.b64decode(one["map"]), np.int8) for one in part["maps"]]
    values = np.concatenate(rows["map"].to_list())
    steps = np.concatenate(read).astype(float)
    scale = np.abs(values).max() / np.abs(steps).max()
    np.testing.assert_allclose(steps * scale, values, atol=0.03 * np.abs(values).max())
    assert part["maps"][0]["crop"] == [0.1, 0.0, 0.9, 1.0]
