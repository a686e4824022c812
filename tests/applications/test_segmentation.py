"""Segmentation metrics against scikit-learn and by hand; order of images; masks that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, jaccard_score

from pipeline_lib.errors import DataError
from pipeline_lib.segmentation import (
    Pair,
    centre_prior,
    example_images,
    object_mask,
    read_mask,
    segment,
    squash_mask,
)
from pipeline_lib.segmentation_counts import Counts, average_precision, min_max


def pictures(n: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    result = []
    for _ in range(n):
        mask = np.zeros((12, 9), dtype=bool)
        top, left = rng.integers(0, 6), rng.integers(0, 4)
        mask[top : top + 5, left : left + 4] = True
        result.append((mask + 1.2 * rng.normal(size=mask.shape), mask))
    return result


def counted(protocol: str, images: list[tuple[np.ndarray, np.ndarray]]) -> Counts:
    counts = Counts(protocol)
    for heat, mask in images:
        counts.add(heat, mask)
    return counts


def test_metrics_equal_scikit_learn() -> None:
    images = pictures()
    found = np.concatenate([(heat > heat.mean()).ravel() for heat, _ in images])
    truth = np.concatenate([mask.ravel() for _, mask in images])
    both = counted("C", images).result()
    assert both["pixel_accuracy"] == pytest.approx((found == truth).mean())
    assert both["iou_object"] == pytest.approx(jaccard_score(truth, found))
    assert both["iou_background"] == pytest.approx(jaccard_score(~truth, ~found))
    assert both["miou"] == pytest.approx(jaccard_score(truth, found, average="macro"))
    one = counted("V", images).result()
    assert one["iou_object"] == both["iou_object"]
    assert one["iou_background"] is None and one["miou"] is None
    singles = [average_precision_score(mask.ravel(), heat.ravel()) for heat, mask in images]
    assert one["map"] == pytest.approx(np.mean(singles))


def test_average_precision_of_c_pools_the_two_channels_of_an_image() -> None:
    heat = np.array([[0.0, 1.0, 0.25]])
    mask = np.array([[False, True, True]])
    # Scores with their truth: background 1-heat: (1,T) (0,F) (.75,F); object: (0,F) (1,T) (.25,T).
    # Descending: two true at 1, false at .75, true at .25, two false at 0.
    expected = 2 / 3 * 1.0 + 1 / 3 * (3 / 4)
    counts = Counts("C")
    counts.add(heat, mask)
    assert counts.result()["map"] == pytest.approx(expected)


def test_average_precision_equals_scikit_learn_with_ties_and_without() -> None:
    rng = np.random.default_rng(0)
    for levels in (3, 10_000):
        score = rng.integers(0, levels, 500) / levels
        truth = rng.random(500) < 0.3 + 0.3 * score
        expected = average_precision_score(truth, score)
        assert average_precision(score, truth) == pytest.approx(expected)


def test_images_by_themselves_and_the_interval_around_the_pooled_value() -> None:
    images = pictures(12)
    counts = Counts("C")
    for number, (heat, mask) in enumerate(images):
        counts.add(heat, mask, f"{number}.png")
    rows = pd.DataFrame(counts.images())
    for (heat, mask), row in zip(images, rows.itertuples(), strict=True):
        assert row.iou_object == pytest.approx(
            jaccard_score(mask.ravel(), (heat > heat.mean()).ravel())
        )
        assert row.mass == pytest.approx(heat[mask & (heat > 0)].sum() / heat[heat > 0].sum())
        assert row.area == mask.mean()
    whole = counts.result()
    assert whole["low"] < whole["miou"] < whole["high"]
    alike = counted("C", images[:1] * 5).result()
    assert alike["low"] == pytest.approx(alike["high"])


def test_examples_are_the_best_the_median_and_the_worst() -> None:
    images = pd.DataFrame(
        {
            "method": ["decomposition"] * 5 + ["centre"],
            "image_id": list("abcdef"),
            "iou_object": [0.3, 0.9, 0.1, 0.5, 0.7, 1.0],
        }
    )
    found = example_images(images)
    assert found["place"].tolist() == ["best", "median", "worst"]
    assert found["image_id"].tolist() == ["b", "d", "c"]


def test_a_perfect_map_is_perfect_and_its_negative_is_not() -> None:
    mask = pictures(1)[0][1]
    counts = counted("C", [(mask.astype(float), mask)])
    assert [counts.result()[k] for k in ("pixel_accuracy", "miou", "map")] == [1.0, 1.0, 1.0]
    assert counted("C", [(-mask.astype(float), mask)]).result()["pixel_accuracy"] == 0.0


def test_pixels_are_pooled_and_images_may_come_in_any_order() -> None:
    images = pictures()
    assert counted("C", images).result() == pytest.approx(counted("C", images[::-1]).result())
    apart = np.mean([counted("V", [image]).result()["iou_object"] for image in images])
    assert counted("V", images).result()["iou_object"] != pytest.approx(apart, abs=1e-6)


def test_scale_and_offset_of_a_map_do_not_matter() -> None:
    images = pictures()
    moved = [(5 * heat - 40, mask) for heat, mask in images]
    assert counted("C", images).result() == pytest.approx(counted("C", moved).result())


def test_a_constant_map_finds_nothing() -> None:
    mask = pictures(1)[0][1]
    result = counted("C", [(np.full(mask.shape, 3.0), mask)]).result()
    assert result["iou_object"] == 0.0
    assert result["pixel_accuracy"] == pytest.approx(1 - mask.mean())
    assert min_max(np.full((2, 2), 3.0)).tolist() == [[0, 0], [0, 0]]


def test_any_class_of_a_mask_is_object() -> None:
    assert object_mask(np.array([[0, 1], [255, 17]], np.uint8)).tolist() == [[0, 1], [1, 1]]


def test_the_centre_prior_peaks_in_the_middle_and_is_symmetric() -> None:
    prior = centre_prior(5, 7)
    assert np.unravel_index(prior.argmax(), prior.shape) == (2, 3)
    np.testing.assert_allclose(prior, prior[::-1, ::-1])


def test_masks_and_maps_that_do_not_fit() -> None:
    counts = Counts("C")
    with pytest.raises(DataError, match=r"heat map is 4×4 pixels and its mask 8×8"):
        counts.add(np.ones((4, 4)), np.ones((8, 8), bool))
    with pytest.raises(DataError, match="without any object pixel"):
        counts.add(np.ones((4, 4)), np.zeros((4, 4), bool))
    with pytest.raises(DataError, match="NaN"):
        counts.add(np.array([[np.nan, 1.0]]), np.ones((1, 2), bool))
    with pytest.raises(DataError, match="no image with a mask"):
        counts.result()
    with pytest.raises(DataError, match="unknown segmentation protocol 'C-crop'"):
        Counts("C-crop")


def test_masks_are_read_as_numbers_whatever_their_mode(tmp_path: Path) -> None:
    values = np.array([[0, 0, 3], [0, 17, 0]], np.uint8)
    grey, palette, colour = (Image.fromarray(values) for _ in range(3))
    palette = palette.convert("P")
    palette.putpalette([7] * 768)
    colour = Image.fromarray(np.stack([np.zeros_like(values), values, values], axis=2))
    for name, picture in {"grey": grey, "palette": palette, "colour": colour}.items():
        picture.save(tmp_path / f"{name}.png")
        read = np.asarray(read_mask(tmp_path / f"{name}.png", (3, 2)))
        np.testing.assert_array_equal(read, values)


def test_a_squashed_mask_keeps_its_values_and_its_borders() -> None:
    mask = Image.fromarray(np.repeat(np.array([[5, 0]], np.uint8), 50, axis=1))
    squashed = squash_mask(mask, (4, 10))
    assert squashed.shape == (4, 10)
    assert (squashed[:, :5] == 5).all() and (squashed[:, 5:] == 0).all()


def test_masks_that_do_not_belong_to_their_picture(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask.png is 6×4 pixels, but its picture is 4×6"):
        read_mask(tmp_path / "mask.png", (4, 6))
    (tmp_path / "text.png").write_text("not a picture")
    with pytest.raises(DataError, match="cannot be read as a mask"):
        read_mask(tmp_path / "text.png", (4, 6))


class CroppingModel:
    """Stand-in for a model: shorter side to 64, centre crop of 48, pixels to -1 … 1."""

    input_size = (48, 48)

    def _crop(self, picture: Image.Image, resample: Image.Resampling) -> Image.Image:
        scale = 64 / min(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], resample)
        left, top = (picture.width - 48) // 2, (picture.height - 48) // 2
        return picture.crop((left, top, left + 48, top + 48))

    def preprocess(self, picture: Image.Image) -> torch.Tensor:
        pixels = np.asarray(self._crop(picture, Image.Resampling.BILINEAR)).astype(np.float32)
        return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1

    def preprocess_mask(self, mask: Image.Image) -> np.ndarray:
        return np.asarray(self._crop(mask, Image.Resampling.NEAREST))


def brightness(images: torch.Tensor, positions: np.ndarray) -> np.ndarray:
    """A method that finds bright objects, whatever the batch."""
    return images.mean(dim=1).numpy()


@pytest.fixture
def files(tmp_path: Path) -> list[Pair]:
    """Bright rectangles on dark, not square; the last one lies outside the centre crop."""
    pairs = []
    for number, left in enumerate((56, 72, 104, 0)):
        mask = np.zeros((96, 192), np.uint8)
        mask[24:72, left : left + 24] = 3
        pixels = np.repeat((mask > 0)[..., None] * 200 + 20, 3, axis=2).astype(np.uint8)
        pair = Pair(tmp_path / f"{number}.png", tmp_path / f"{number}_mask.png")
        Image.fromarray(pixels).save(pair.picture)
        Image.fromarray(mask).save(pair.mask)
        pairs.append(pair)
    return pairs


def test_masks_follow_their_pictures_under_both_protocols(files: list[Pair]) -> None:
    found = segment(CroppingModel(), files, {"bright": brightness}, ["C", "V"])
    rows = found.table.set_index("protocol")
    # Resizing blurs one pixel around an object of six; any shift would cost far more.
    assert rows.loc["C", "miou"] > 0.8 and rows.loc["V", "iou_object"] > 0.8
    assert rows.loc["C", "n"] == 4
    assert rows.loc["V", "n"] == 3  # the crop loses the last object


def test_the_result_does_not_depend_on_the_batch_size(files: list[Pair]) -> None:
    methods = {"bright": brightness, "place": lambda images, at: np.cos(at[:, None, None] + grid)}
    grid = np.arange(9.0).reshape(1, 3, 3)
    found = [segment(CroppingModel(), files, methods, ["C", "V"], batch_size=b) for b in (1, 3, 8)]
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0].table, other.table)
        pd.testing.assert_frame_equal(found[0].images, other.images)


def test_a_damaged_picture_is_named(files: list[Pair]) -> None:
    files[1].picture.write_bytes(files[1].picture.read_bytes()[:40])
    with pytest.raises(DataError, match=r"1\.png"):
        segment(CroppingModel(), files, {"bright": brightness}, ["C"])
