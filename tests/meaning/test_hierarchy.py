"""The representation opened from coarse to fine: shares add up, and planted texts come out."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.coordinates import Encoded, Source, encode
from pipeline_lib.hierarchy import (
    coarse_parts,
    describe,
    hierarchy_table,
    part_moments,
    parts_of,
)
from pipeline_lib.maps import Maps, unit
from pipeline_lib.scores import Moments, moments
from pipeline_lib.textspan import explained, label_components

N, D, E, POOL = 400, 14, 10, 120
#: A hierarchical model: a stem, two stages of one and two blocks, a bias.
COMPONENTS = pd.DataFrame(
    [
        ("stem", "stem", -1, -1),
        ("b0/head0", "head", 0, 0),
        ("b0/head1", "head", 0, 0),
        ("b0/mlp", "mlp", 0, 0),
        ("b1/head0", "head", 1, 1),
        ("b2/mlp", "mlp", 1, 2),
        ("bias", "bias", -1, -1),
    ],
    columns=["id", "kind", "stage", "block"],
).assign(component=range(7), layer=0, head=-1)
TEXTS = [f"text {i}" for i in range(POOL)]
CATEGORIES = ["even" if i % 2 == 0 else "odd" for i in range(POOL)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def model(seed: int = 0) -> tuple[torch.Tensor, Maps, torch.Tensor]:
    """Contributions, maps and a pool; b1/head0 varies along text 7, both heads of b0 along 4."""
    maps = Maps("ridge", normal(7, D, E, seed=1), torch.zeros(E))
    pool = unit(normal(POOL, E, seed=2))
    contributions = 0.02 * normal(N, 7, D, seed=seed)
    back = torch.linalg.pinv(maps.weights)
    for component, text, scale in ((4, 7, 3.0), (1, 4, 2.0), (2, 4, 2.0)):
        amount = scale * normal(N, 1, seed=100 * seed + text)
        contributions[:, component] += amount * (pool[text] @ back[component])
    contributions[:, 6] = 1.0
    return contributions, maps, pool


def measured(seed: int = 0) -> tuple[Encoded, Moments, torch.Tensor, torch.Tensor]:
    contributions, maps, pool = model(seed)
    encoded = encode(Source.of_array(contributions))
    return encoded, moments(encoded, maps), pool, maps.apply(contributions)


def coarse(encoded: Encoded, found: Moments, components: pd.DataFrame = COMPONENTS) -> Moments:
    return part_moments(encoded, found, coarse_parts(components))


def table(components: pd.DataFrame = COMPONENTS) -> pd.DataFrame:
    encoded, found, pool, _ = measured()
    labels = label_components(found, pool, count=3)
    summed = coarse(encoded, found, components)
    above = label_components(summed, pool, count=3)
    described = describe(summed, found, components, above, labels)
    return hierarchy_table(described, TEXTS, CATEGORIES)


def test_every_level_holds_every_component_once() -> None:
    parts = parts_of(COMPONENTS)
    levels = list(dict.fromkeys(part.level for part in parts))
    assert levels == ["representation", "stage", "block", "component"]
    for level in levels:
        members = [c for part in parts if part.level == level for c in part.members]
        assert sorted(members) == list(range(7))
    stages = [part.node for part in parts if part.level == "stage"]
    assert stages == ["stem", "stage 0", "stage 1", "bias"]
    parents = {part.node: part.parent for part in parts if part.level == "block"}
    assert parents["block 2"] == "stage 1"


def test_a_model_of_one_stage_has_no_level_of_stages() -> None:
    flat = COMPONENTS.assign(stage=-1)
    assert [part.parent for part in parts_of(flat) if part.level == "block"] == [
        "representation"
    ] * 5


@pytest.mark.parametrize("stages", [True, False])
def test_shares_of_children_add_up_to_their_parent(stages: bool) -> None:
    nodes = table(COMPONENTS if stages else COMPONENTS.assign(stage=-1))
    nodes = nodes.drop_duplicates(["level", "node"])
    levels = list(dict.fromkeys(nodes["level"]))
    assert nodes.loc[nodes["level"] == "representation", "share"].item() == pytest.approx(1.0)
    for above, below in itertools.pairwise(levels):
        parents = nodes[nodes["level"] == above].set_index("node")["share"]
        sums = nodes[nodes["level"] == below].groupby("parent")["share"].sum()
        np.testing.assert_allclose(sums, parents[sums.index], atol=1e-5)
        assert set(sums.index) == set(parents.index)


def test_shares_are_of_what_is_mapped_and_strengths_of_what_is_not() -> None:
    """A map that drops all of one component takes its share and leaves its direct effect."""
    contributions, maps, pool = model()
    weights = maps.weights.clone()
    weights[4] = 0
    encoded = encode(Source.of_array(contributions))
    seen, dropped = moments(encoded, maps), moments(encoded, Maps("ridge", weights, maps.bias))
    summed = coarse(encoded, dropped)
    labels = (label_components(each, pool, count=1) for each in (summed, dropped))
    described = describe(summed, dropped, COMPONENTS, *labels)
    shares = hierarchy_table(described, TEXTS, CATEGORIES).query("level == 'component'")
    assert shares.set_index("node")["share"]["b1/head0"] == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(dropped.strengths, seen.strengths)
    assert dropped.strengths[4] > 0.2


def test_moments_of_parts_are_those_of_their_sums() -> None:
    encoded, found, _, mapped = measured()
    parts = [part for part in parts_of(COMPONENTS) if part.level == "block"]
    summed = part_moments(encoded, found, parts)
    whole = mapped.sum(dim=1).double()
    for place, part in enumerate(parts):
        values = mapped[:, list(part.members)].sum(dim=1).double()
        want = torch.from_numpy(np.cov(values.numpy().T, bias=True))
        torch.testing.assert_close(summed.within[place], want, rtol=1e-3, atol=1e-4)
        both = (values - values.mean(0)).T @ (whole - whole.mean(0)) / N
        got = summed.cross[summed.bases.slices[place]]
        torch.testing.assert_close(got, both, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(
            summed.mean[summed.bases.slices[place]], values.mean(0), rtol=1e-3, atol=1e-4
        )


def test_parts_are_described_by_what_their_components_say() -> None:
    first = table().query("rank == 0").set_index(["level", "node"])["text"]
    assert first["representation", "representation"] == "text 4"
    assert first["stage", "stage 0"] == first["block", "block 0"] == "text 4"
    assert first["stage", "stage 1"] == first["component", "b1/head0"] == "text 7"
    assert first["component", "b0/head0"] == "text 4"
    assert first["component", "bias"] == ""


def test_labels_of_components_are_taken_as_they_are() -> None:
    encoded, found, pool, _ = measured()
    labels = label_components(found, pool, count=2)
    summed = coarse(encoded, found)
    above = label_components(summed, pool, count=2)
    described = describe(summed, found, COMPONENTS, above, labels)
    fine = [one for one in described if one.part.level == "component"]
    assert [one.label for one in fine] == labels
    assert [one.label for one in described if one not in fine] == above


def test_finer_levels_explain_as_much_of_other_images() -> None:
    """Texts per part are fixed: more parts explain more of what they make up together."""
    encoded, found, pool, _ = measured()
    fresh, other, _, _ = measured(seed=1)
    labels = label_components(found, pool, count=1)
    summed = coarse(encoded, found)
    above = label_components(summed, pool, count=1)
    described = describe(summed, found, COMPONENTS, above, labels)
    parts = coarse_parts(COMPONENTS)
    kinds = {"components": (other, labels), "parts": (part_moments(fresh, other, parts), above)}
    heldout = {
        kind: [
            explained(seen, place, label.directions).tolist() if label.texts else []
            for place, label in enumerate(each)
        ]
        for kind, (seen, each) in kinds.items()
    }
    rows = hierarchy_table(described, TEXTS, CATEGORIES, heldout).query("text != ''")
    known = rows.set_index(["level", "node"])["cumulative_heldout"]
    assert known["representation", "representation"] < 0.8
    assert known["block", "block 0"] > 0.95
    assert known["component", "b1/head0"] > 0.95
    alone = hierarchy_table(described, TEXTS, CATEGORIES)
    assert alone["cumulative_heldout"].isna().all()
