"""Maps to CLIP space: planted maps are recovered, fits agree with their definitions."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from pipeline_lib.coordinates import Bases, Source, encode
from pipeline_lib.errors import ArtifactError, DataError
from pipeline_lib.map_fits import Settings, add_orthogonality_gradient, cosine_loss, fit_maps
from pipeline_lib.map_problem import Problem
from pipeline_lib.map_ridge import STRENGTHS, ridge
from pipeline_lib.maps import (
    Maps,
    applied_metrics,
    identity_maps,
    load_maps,
    save_maps,
    split_heldout,
    target_ranks,
    unit,
    with_heldout,
)

N, C, D, E = 400, 4, 16, 12
IDS = [f"{i}.png" for i in range(N)]
HELDOUT = split_heldout(IDS, 0.25, seed=0)


def isometries(count: int, width: int, out: int, seed: int = 3) -> torch.Tensor:
    """Random maps [count, width, out] whose smaller Gram matrix is the identity."""
    generator = torch.Generator().manual_seed(seed)
    side = max(width, out)
    full = torch.linalg.qr(torch.randn(count, side, side, generator=generator)).Q
    return full[:, :width, :out]


def planted(
    noise: float = 0.0, width: int = D, out: int = E, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Contributions, unit targets made of them by planted isometries, and those isometries."""
    generator = torch.Generator().manual_seed(seed)
    contributions = torch.randn(N, C, width, generator=generator)
    maps = isometries(C, width, out)
    targets = torch.einsum("ncd,cde->ne", contributions, maps)
    targets += noise * torch.randn(targets.shape, generator=generator)
    return contributions, unit(targets), maps


def fit(contributions: torch.Tensor, targets: torch.Tensor, method: str, **settings):
    quick = {"learning_rate": 0.02, "batch_size": 64, "max_epochs": 60} | settings
    return fit_maps(
        Source.of_array(contributions), targets, HELDOUT, method=method, settings=Settings(**quick)
    )


def heldout_cosine(result) -> float:
    return float(result.metrics.query("chosen and split == 'heldout'")["cosine"].iloc[0])


@pytest.mark.parametrize("method", ["compalign", "cosine", "ridge", "anchored"])
@pytest.mark.parametrize(("width", "out"), [(16, 12), (12, 16)])
def test_planted_maps_are_recovered(method: str, width: int, out: int) -> None:
    contributions, targets, _ = planted(width=width, out=out)
    assert heldout_cosine(fit(contributions, targets, method, orthogonality=0.1)) > 0.99


def test_planted_matrices_themselves_are_recovered_by_compalign() -> None:
    contributions, targets, maps = planted(width=12, out=12)
    got = fit(contributions, targets, "compalign").maps.weights
    alignment = (got * maps).sum(dim=(1, 2)) / (got.norm(dim=(1, 2)) * maps.norm(dim=(1, 2)))
    assert alignment.min() > 0.99


@pytest.mark.parametrize("method", ["compalign", "cosine", "ridge", "anchored"])
def test_error_falls_as_noise_falls(method: str) -> None:
    """Against the targets without their noise: what falls is the error of the map itself."""
    contributions, clean, _ = planted()
    errors = []
    for noise in (3.0, 1.0, 0.3, 0.0):
        maps = fit(*planted(noise)[:2], method).maps
        images = unit(maps.apply_total(contributions[HELDOUT]))
        errors.append(1 - float((images * clean[HELDOUT]).sum(1).mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05 and errors[-1] < 0.01


@pytest.mark.parametrize("method", ["shared", "procrustes"])
def test_one_map_for_all_is_recovered_where_one_was_planted(method: str) -> None:
    contributions, _, maps = planted()
    targets = unit(contributions.sum(1) @ maps[0] + 0.3)
    result = fit(contributions, targets, method)
    assert heldout_cosine(result) > 0.98
    assert result.maps.weights.shape == (1, D, E)


def test_separate_maps_beat_one_map_where_separate_ones_were_planted() -> None:
    contributions, targets, _ = planted()
    shared = heldout_cosine(fit(contributions, targets, "shared"))
    assert shared < 0.8 < heldout_cosine(fit(contributions, targets, "ridge"))


def test_anchored_ridge_falls_back_to_the_isometry_where_images_say_nothing() -> None:
    """Few images: maps drawn to a common isometry beat maps drawn to zero, if there is one."""
    contributions, _, maps = planted()
    generator = torch.Generator().manual_seed(4)
    targets = unit(contributions.sum(1) @ maps[0] + 0.5 * torch.randn(N, E, generator=generator))
    few = np.arange(N) >= 40
    source = Source.of_array(contributions)
    anchored, ridged = (
        heldout_cosine(fit_maps(source, targets, few, method=method))
        for method in ("anchored", "ridge")
    )
    assert anchored > ridged + 0.02


def test_ridge_with_an_anchor_by_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    contributions, targets, _ = planted(noise=1.0)
    encoded = encode(Source.of_array(contributions), bases=Bases([None] * C, D))
    problem = Problem(encoded, targets, np.flatnonzero(~HELDOUT), np.flatnonzero(HELDOUT))
    anchor = torch.randn(C * D, E, generator=torch.Generator().manual_seed(6)) / 20
    found = ridge(problem, anchor)
    x = encoded.values.astype(float)
    rest = targets.double().numpy() - x @ anchor.double().numpy()
    inside, outside = ~HELDOUT, HELDOUT
    spread = ((x[inside] - x[inside].mean(0)) ** 2).sum() / x.shape[1]
    cosines = {}
    for strength in STRENGTHS:
        model = Ridge(alpha=strength * spread).fit(x[inside], rest[inside])
        images = x[outside] @ anchor.double().numpy() + model.predict(x[outside])
        images /= np.linalg.norm(images, axis=1, keepdims=True)
        cosines[(images * targets.double().numpy()[outside]).sum(1).mean()] = model
    best = cosines[max(cosines)]
    np.testing.assert_allclose(found.blocks - anchor, best.coef_.T, atol=1e-4)
    np.testing.assert_allclose(found.bias, best.intercept_, atol=1e-4)


def test_procrustes_is_an_isometry() -> None:
    weights = fit(*planted()[:2], "procrustes").maps.weights[0]
    torch.testing.assert_close(weights.T @ weights, torch.eye(E), rtol=0, atol=1e-5)


def test_primal_and_dual_ridge_agree_with_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    contributions, targets, _ = planted(noise=1.0)
    for images in (HELDOUT, np.arange(N) >= 30):  # 300 or 30 images for 64 coordinates
        result = fit_maps(Source.of_array(contributions), targets, images, method="ridge")
        x, y = contributions.flatten(1).double().numpy(), targets.double().numpy()
        inside = ~images
        spread = ((x[inside] - x[inside].mean(0)) ** 2).sum() / x.shape[1]
        cosines = {}
        for strength in STRENGTHS:
            model = Ridge(alpha=strength * spread).fit(x[inside], y[inside])
            predicted = model.predict(x[images])
            predicted /= np.linalg.norm(predicted, axis=1, keepdims=True)
            cosines[(predicted * y[images]).sum(1).mean()] = model
        best = max(cosines)
        assert heldout_cosine(result) == pytest.approx(best, abs=1e-5)
        got = result.maps.weights.flatten(0, 1).T.numpy()
        np.testing.assert_allclose(got, cosines[best].coef_, atol=1e-4)
        np.testing.assert_allclose(result.maps.bias, cosines[best].intercept_, atol=1e-4)


def test_gradients_are_those_of_the_published_objective() -> None:
    generator = torch.Generator().manual_seed(0)
    contributions, targets, _ = planted()
    for out in (12, 20):
        targets = unit(torch.randn(N, out, generator=generator))
        weights = torch.randn(C, D, out, generator=generator, requires_grad=True)
        bias = torch.randn(out, generator=generator, requires_grad=True)
        images = torch.einsum("ncd,cde->ne", contributions, weights) + bias
        cosine = torch.nn.functional.cosine_similarity(images, targets).mean()
        deviation = weights.mT @ weights - torch.eye(out)
        penalty = deviation.square().sum()
        (1 - cosine + 0.7 / (C * out) * penalty).backward()
        blocks = weights.detach().flatten(0, 1)
        flat = contributions.flatten(1)
        loss, pull = cosine_loss(flat @ blocks + bias.detach(), targets)
        gradient = flat.T @ pull
        found = add_orthogonality_gradient(blocks, [(0, C, D)], 0.7 / (C * out), gradient)
        torch.testing.assert_close(gradient, weights.grad.flatten(0, 1), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(pull.sum(0), bias.grad, rtol=1e-3, atol=1e-5)
        constant = C * max(out - D, 0)
        assert found + constant == pytest.approx(float(penalty.detach()), rel=1e-4)
        assert loss == pytest.approx(float(1 - cosine.detach()), abs=1e-5)


def test_orthogonality_pulls_maps_to_isometries() -> None:
    contributions, targets, _ = planted(noise=2.0)

    def deviation(orthogonality: float) -> float:
        weights = fit(contributions, targets, "compalign", orthogonality=orthogonality).maps.weights
        return float((weights.mT @ weights - torch.eye(E)).square().mean())

    assert deviation(1.0) < 0.3 * deviation(0.0)


def test_compalign_is_never_worse_on_heldout_than_its_start() -> None:
    contributions, targets, _ = planted(noise=5.0)
    result = fit(contributions, targets, "compalign", learning_rate=1.0, patience=2)
    assert heldout_cosine(result) == pytest.approx(max(result.history), abs=1e-5)
    assert heldout_cosine(result) >= result.history[0] - 1e-6
    assert len(result.history) == 1 + int(np.argmax(result.history)) + 2


def test_streamed_equals_in_memory() -> None:
    contributions, targets, _ = planted(noise=0.5)
    whole = fit(contributions, targets, "compalign")
    streamed = fit_maps(
        Source(N, lambda index: contributions[index].numpy(), batch_size=33),
        targets,
        HELDOUT,
        settings=Settings(learning_rate=0.02, batch_size=64, max_epochs=60),
        memory_bytes=100,
    )
    torch.testing.assert_close(streamed.maps.weights, whole.maps.weights, rtol=0, atol=1e-5)


def test_two_runs_with_one_seed_are_identical_and_seeds_matter() -> None:
    contributions, targets, _ = planted(noise=0.5)
    first, second = (fit(contributions, targets, "compalign", seed=4) for _ in range(2))
    assert torch.equal(first.maps.weights, second.maps.weights)
    other = fit(contributions, targets, "compalign", seed=5)
    assert not torch.equal(first.maps.weights, other.maps.weights)


def test_low_rank_components_give_the_same_map_as_all_axes() -> None:
    generator = torch.Generator().manual_seed(0)
    contributions, targets, maps = planted(width=24, out=20)
    thin = torch.linalg.qr(torch.randn(24, 5, generator=generator)).Q
    contributions[:, 1] = contributions[:, 1] @ thin @ thin.T
    targets = unit(torch.einsum("ncd,cde->ne", contributions, maps))
    assert encode(Source.of_array(contributions)).bases.ranks == [24, 5, 24, 24]
    result = fit(contributions, targets, "compalign", orthogonality=0.1)
    assert heldout_cosine(result) > 0.99
    images = unit(result.maps.apply_total(contributions[HELDOUT]))
    cosine = float((images * targets[HELDOUT]).sum(1).mean())
    assert cosine == pytest.approx(heldout_cosine(result), abs=1e-5)


def test_factored_and_full_coordinates_give_the_same_ridge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    contributions, targets, _ = planted(noise=0.5, width=24, out=10)
    thin = torch.linalg.qr(torch.randn(24, 5, generator=torch.Generator().manual_seed(1))).Q
    contributions[:, 2] = contributions[:, 2] @ thin @ thin.T
    source = Source.of_array(contributions)
    full = encode(source, bases=Bases([None] * C, 24))
    factored = encode(source)
    few, all_axes = factored.values.shape[1], full.values.shape[1]
    assert few < all_axes
    parts = np.flatnonzero(~HELDOUT), np.flatnonzero(HELDOUT)
    got = ridge(Problem(factored, targets, *parts))
    # A strength is relative to the mean variance of a coordinate, which is less where there are
    # more of them. With the same absolute ridge the two are the same problem in turned axes, whose
    # solution has nothing along axes without variance: they differ by rounding alone.
    stretched = [strength * all_axes / few for strength in STRENGTHS]
    monkeypatch.setattr("pipeline_lib.map_ridge.STRENGTHS", stretched)
    want = ridge(Problem(full, targets, *parts))
    torch.testing.assert_close(
        factored.bases.expand(got.blocks), full.bases.expand(want.blocks), rtol=1e-3, atol=1e-5
    )
    torch.testing.assert_close(got.bias, want.bias, rtol=1e-3, atol=1e-5)


# Applying


def some_maps() -> Maps:
    generator = torch.Generator().manual_seed(0)
    return Maps(
        "ridge",
        torch.randn(C, D, E, generator=generator),
        torch.randn(E, generator=generator),
        {"model": "deit"},
    )


@pytest.mark.parametrize("kind", ["separate", "shared", "identity"])
def test_components_and_bias_sum_to_the_total(kind: str) -> None:
    contributions = planted()[0][:20]
    maps = some_maps()
    if kind == "shared":
        maps = Maps("shared", maps.weights[:1], maps.bias)
    if kind == "identity":
        maps = identity_maps(D)
    total = maps.apply(contributions).sum(1) + maps.bias
    torch.testing.assert_close(maps.apply_total(contributions), total, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["separate", "shared", "identity"])
def test_directions_read_texts_off_components(kind: str) -> None:
    contributions = planted()[0][:20]
    maps = some_maps()
    if kind == "shared":
        maps = Maps("shared", maps.weights[:1], maps.bias)
    if kind == "identity":
        maps = identity_maps(D)
    texts = torch.randn(3, len(maps.bias), generator=torch.Generator().manual_seed(2))
    directions = maps.directions(texts, components=C)
    assert directions.shape == (C, D, 3)
    got = torch.einsum("ncd,cdk->nck", contributions, directions)
    torch.testing.assert_close(got, maps.apply(contributions) @ texts.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(C + 1, D), (C, D + 1)])
def test_maps_of_another_model_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ArtifactError, match="do not fit contributions"):
        some_maps().apply(torch.zeros(2, *shape))


def test_identity_refuses_another_width() -> None:
    with pytest.raises(ArtifactError, match="do not fit contributions"):
        identity_maps(D).apply_total(torch.zeros(2, C, D + 1))


def test_identity_metrics_of_a_models_own_embeddings_are_perfect() -> None:
    contributions = planted()[0]
    source = Source.of_array(contributions)
    metrics = applied_metrics(identity_maps(D), source, contributions.sum(1), HELDOUT)
    assert list(metrics["method"]) == ["identity", "identity"]
    np.testing.assert_allclose(metrics[["cosine", "recall_at_1"]], 1.0, atol=1e-5)


def test_metrics_table_has_all_methods_and_one_choice() -> None:
    contributions, targets, _ = planted()
    result = fit_maps(
        Source.of_array(contributions),
        targets,
        HELDOUT,
        method="ridge",
        baselines=["shared", "ridge", "procrustes"],
    )
    table = result.metrics
    assert len(table) == 6
    assert set(table.query("chosen")["method"]) == {"ridge"}
    assert set(table["n"]) == {int(HELDOUT.sum()), int((~HELDOUT).sum())}


def test_maps_fitted_elsewhere_are_measured_as_they_are(tmp_path) -> None:
    """Exported, loaded, and applied to images that they were not fitted on: no refit."""
    contributions, targets, _ = planted(width=12, out=12)
    fitted = fit(contributions, targets, "compalign").maps
    save_maps(fitted, tmp_path / "m.safetensors", tmp_path / "m.json")
    fresh, aims, _ = planted(width=12, out=12, seed=9)
    maps = load_maps(tmp_path / "m.safetensors")
    metrics = applied_metrics(maps, Source.of_array(fresh), aims, HELDOUT)
    assert metrics["cosine"].min() > 0.99
    assert torch.equal(maps.weights, fitted.weights)
    other = applied_metrics(maps, Source.of_array(fresh), aims.flip(0), HELDOUT)
    assert other["cosine"].abs().max() < 0.2


def test_maps_of_other_weights_are_refused() -> None:
    maps = Maps("ridge", None, torch.zeros(E), {"weights": "abc"})
    maps.check_model("abc")
    for known in (maps, identity_maps(E)):
        with pytest.raises(ArtifactError, match="give the maps of these very weights"):
            known.check_model("abd")


def test_random_start_reaches_what_procrustes_start_reaches() -> None:
    contributions, targets, _ = planted(width=12, out=12)
    assert heldout_cosine(fit(contributions, targets, "compalign", initial="random")) > 0.99


def test_nan_in_a_dump_is_named() -> None:
    contributions, targets, _ = planted()
    contributions[17, 2, 5] = float("nan")
    with pytest.raises(ArtifactError, match="component 2 of image 17"):
        fit(contributions, targets, "ridge")


# Recall


def test_ranks_by_hand() -> None:
    targets = torch.eye(3)[[0, 1, 2, 2]]
    images = unit(torch.tensor([[1.0, 0.5, 0], [1, 0.9, 0.8], [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]]))
    # Two images have the target e3; it counts once, so no rank exceeds two.
    assert target_ranks(images, targets).tolist() == [0, 1, 0, 2]


def test_recall_of_random_images_is_at_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    images, targets = unit(torch.randn(2, 1500, 8, generator=generator))
    ranks = target_ranks(images, targets).double()
    assert abs(float(ranks.mean()) / 1500 - 0.5) < 0.03


# Splits


def test_heldout_images_stay_heldout_when_images_are_added() -> None:
    before = split_heldout(IDS[:200], 0.3, seed=1)
    np.testing.assert_array_equal(split_heldout(IDS, 0.3, seed=1)[:200], before)
    assert not np.array_equal(split_heldout(IDS[:200], 0.3, seed=2), before)
    assert abs(split_heldout(IDS, 0.3, seed=1).mean() - 0.3) < 0.08


def test_a_split_of_its_own_holds_the_images_that_a_fit_holds_out() -> None:
    splits = ["test" if i % 5 == 0 else "val" if i % 5 == 1 else "train" for i in range(N)]
    manifest = pd.DataFrame({"image_id": IDS, "split": splits, "active": True})
    divided = with_heldout(manifest, 0.25, seed=0)
    kept = np.array([split != "test" for split in splits])
    heldout = split_heldout([name for name, keep in zip(IDS, kept, strict=True) if keep], 0.25, 0)
    np.testing.assert_array_equal(
        np.flatnonzero(kept)[heldout], np.flatnonzero(divided["split"] == "heldout")
    )
    same = divided["split"] != "heldout"
    assert [splits[i] for i in np.flatnonzero(same)] == divided["split"][same].tolist()


@pytest.mark.parametrize("side", ["heldout", "train"])
def test_fewer_than_two_active_images_on_a_side_are_refused_before_any_is_decomposed(
    side: str,
) -> None:
    manifest = pd.DataFrame({"image_id": IDS, "split": "train", "active": True})
    members = np.flatnonzero(with_heldout(manifest, 0.25, seed=0)["split"] == side)
    few = manifest.assign(active=~np.isin(np.arange(N), members[1:]))
    sides = (
        f"{N - len(members)} .* and 1 " if side == "heldout" else f"1 .* and {N - len(members)} "
    )
    with pytest.raises(DataError, match=rf"maps\.heldout: 0\.25 .* leaves {sides}held out"):
        with_heldout(few, 0.25, seed=0)
    two = manifest.assign(active=~np.isin(np.arange(N), members[2:]))
    assert (with_heldout(two, 0.25, seed=0)["split"] == side).sum() == len(members)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(DataError, match="use more images"):
        split_heldout(["a", "b"], 0.001, seed=0)
    contributions, targets, _ = planted()
    with pytest.raises(DataError, match="too few"):
        fit_maps(Source.of_array(contributions), targets, np.ones(N, dtype=bool))


@pytest.mark.parametrize("method", ["ridge", "anchored", "shared", "procrustes", "compalign"])
def test_test_images_are_measured_and_neither_fitted_nor_chosen_on(method: str) -> None:
    """Their targets are noise: the maps are those without them, and only their row is bad."""
    contributions, targets, _ = planted(noise=0.3)
    test = np.arange(N) % 4 == 3
    noise = torch.randn(N, E, generator=torch.Generator().manual_seed(8))
    spoiled = torch.where(torch.from_numpy(test)[:, None], unit(noise), targets)
    settings = Settings(learning_rate=0.02, batch_size=64, max_epochs=5)
    some = {"method": method, "settings": settings}
    source = Source.of_array(contributions)
    got = fit_maps(source, spoiled, HELDOUT & ~test, test=test, **some)
    want = fit_maps(Source.of_array(contributions[~test]), targets[~test], HELDOUT[~test], **some)
    torch.testing.assert_close(got.maps.weights, want.maps.weights, rtol=0, atol=1e-4)
    assert got.maps.facts == want.maps.facts
    assert ("strength" in got.maps.facts) == (method in ("ridge", "anchored", "shared"))
    rows, others = (one.metrics.set_index("split") for one in (got, want))
    assert list(rows.index) == ["train", "heldout", "test"] and list(others.index) == [
        *rows.index[:2]
    ]
    np.testing.assert_allclose(rows["cosine"][:2], others["cosine"], atol=1e-4)
    assert rows.loc["test", "n"] == test.sum()
    assert rows.loc["test", "cosine"] < rows.loc["heldout", "cosine"] - 0.2


def test_targets_are_checked() -> None:
    contributions, targets, _ = planted()
    with pytest.raises(DataError, match="one of each"):
        fit_maps(Source.of_array(contributions), targets[:-1], HELDOUT)
    targets[7, 2] = float("nan")
    with pytest.raises(DataError, match="image 7"):
        fit_maps(Source.of_array(contributions), targets, HELDOUT)


def test_unknown_method_names_the_closest() -> None:
    with pytest.raises(DataError, match="did you mean procrustes"):
        fit_maps(
            Source.of_array(planted()[0]),
            planted()[1],
            HELDOUT,
            method="procrustis",  # type: ignore[arg-type]
        )


def test_ridge_by_conjugate_gradients_is_that_in_closed_form(monkeypatch) -> None:
    contributions, targets, _ = planted(noise=1.0)
    closed = fit(contributions, targets, "ridge")
    monkeypatch.setattr("pipeline_lib.map_ridge.MAX_SIDE", 10)
    iterated = fit(contributions, targets, "ridge")
    assert heldout_cosine(iterated) == pytest.approx(heldout_cosine(closed), abs=1e-4)
    difference = (iterated.maps.weights - closed.maps.weights).norm()
    assert float(difference / closed.maps.weights.norm()) < 1e-2


# Files


@pytest.mark.parametrize("kind", ["separate", "identity"])
def test_saved_maps_come_back(tmp_path, kind: str) -> None:
    maps = some_maps() if kind == "separate" else identity_maps(D)
    save_maps(maps, tmp_path / "m.safetensors", tmp_path / "m.json")
    back = load_maps(tmp_path / "m.safetensors")
    contributions = planted()[0][:5]
    assert torch.equal(back.apply_total(contributions), maps.apply_total(contributions))
    assert (back.method, back.facts) == (maps.method, dict(maps.facts))


def test_damaged_or_mismatched_files_are_refused(tmp_path) -> None:
    weights, manifest = tmp_path / "m.safetensors", tmp_path / "m.json"
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_maps(weights)
    save_maps(some_maps(), weights, manifest)
    other = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(other | {"sha256": "0"}))
    with pytest.raises(ArtifactError, match="make both anew"):
        load_maps(weights)
    manifest.write_text(json.dumps(other | {"format": 99}))
    with pytest.raises(ArtifactError, match="format 99"):
        load_maps(weights)
    weights.write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_maps(weights)


@pytest.mark.parametrize("count", [None, 1, 3])
def test_maps_of_some_components_are_those_of_all(count: int | None) -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(5, 3, 4, generator=generator)
    weights = None if count is None else torch.randn(count, 4, 4, generator=generator)
    maps = Maps("ridge", weights, torch.zeros(4))
    assert torch.allclose(maps.only([2, 0]).apply(values[:, [2, 0]]), maps.apply(values)[:, [2, 0]])
