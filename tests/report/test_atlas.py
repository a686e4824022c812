import pandas as pd
import pytest

from pipeline_lib.report.atlas import NO_ROLE, atlas, role_of, roles, rows_of
from pipeline_lib.report.pictures import PictureBook


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


@pytest.mark.parametrize(
    ("categories", "category", "count"),
    [
        (["colour"] * 7 + ["shape"] * 3, "colour", 7),
        (["colour"] * 4 + ["shape"] * 3 + ["scene"] * 3, NO_ROLE, 4),  # under half
        (["colour"] * 5 + ["shape"] * 5, NO_ROLE, 5),  # no lead
        (["colour"] * 10 + ["shape"] * 90, "colour", 10),  # only the first ten count
        ([], NO_ROLE, 0),
    ],
)
def test_role(categories, category, count):
    found = role_of(categories)
    assert (found["category"], found["count"]) == (category, count)


def test_roles_have_one_row_for_each_labelled_component(run):
    found = roles(run)
    labelled = run["labels"][["model", "component"]].drop_duplicates()
    assert len(found) == len(labelled)


def test_payload_holds_the_tables_numbers(run):
    book = PictureBook(run.root, run.folders, run["manifest"])
    data = atlas(run, book)
    assert [model["name"] for model in data["models"]] == ["clip-small", "deit", "swin"]
    deit = {part["id"]: part for part in data["models"][1]["components"]}
    card = deit["blocks.5.attn/head1"]
    rows = run["scores"].query("model == 'deit' and id == 'blocks.5.attn/head1'")
    scores = rows.set_index("feature")["score"]
    for feature in data["features"]:
        value, low, high = card["values"][f"score:{feature}"]
        assert value == pytest.approx(scores[feature], rel=1e-3)
        assert low < value < high
    single = run["ablation"].query("model == 'deit' and target == 'shape'")
    full = single.query("curve == 'none'")["accuracy"].iloc[0]
    without = single.query("ablated == 'blocks.5.attn/head1'")["accuracy"].iloc[0]
    assert card["values"]["drop:shape"] == [pytest.approx(full - without, rel=1e-3, abs=1e-6)]
    assert len(card["texts"]) == 6 and len(card["images"]) == 6
    assert {near[0] for near in card["near"]} == {"clip-small", "swin"}
    assert deit["bias"]["role"] is None and deit["bias"]["texts"] == []
