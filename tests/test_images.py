"""Decoding: one RGB picture from every kind of file, or a reason; batches in order."""

from __future__ import annotations

import hashlib
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline_lib.errors import DataError
from pipeline_lib.images import decode_image, image_batches, read_image

RED, GREEN = (255, 0, 0), (0, 255, 0)


def two_halves(mode: str = "RGB") -> Image.Image:
    """16×8 pixels, red on the left, green on the right."""
    image = Image.new("RGB", (16, 8), RED)
    image.paste(GREEN, (8, 0, 16, 8))
    return image.convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_palette_and_alpha_show_the_same_picture(mode: str) -> None:
    image = decode_image(encoded(two_halves(mode)))
    assert image.mode == "RGB" and image.size == (16, 8)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(two_halves()))


def test_cmyk_becomes_rgb() -> None:
    image = decode_image(encoded(two_halves("CMYK"), "TIFF"))
    np.testing.assert_array_equal(np.asarray(image), np.asarray(two_halves()))


def test_grey_has_three_equal_channels() -> None:
    ramp = np.arange(0, 250, 2, dtype=np.uint8).reshape(5, 25)
    values = np.asarray(decode_image(encoded(Image.fromarray(ramp))))
    for channel in range(3):
        np.testing.assert_array_equal(values[..., channel], ramp)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    values = np.asarray(decode_image(encoded(Image.fromarray(ramp))))
    np.testing.assert_array_equal(values[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_on_white(mode: str) -> None:
    image = Image.new(mode, (4, 4), 0)  # black, fully transparent
    assert (np.asarray(decode_image(encoded(image))) == 255).all()


def test_a_transparent_palette_colour_lies_on_white() -> None:
    content = encoded(two_halves("P"), transparency=two_halves("P").getpixel((0, 0)))
    values = np.asarray(decode_image(content))
    assert (values[:, :8] == 255).all() and (values[:, 8:] == GREEN).all()


def test_pictures_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image = decode_image(encoded(two_halves(), exif=exif))
    assert image.size == (8, 16)
    values = np.asarray(image)
    assert (values[:8] == RED).all() and (values[8:] == GREEN).all()


def test_of_an_animation_the_first_frame_is_taken() -> None:
    content = encoded(
        two_halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (16, 8), GREEN)]
    )
    np.testing.assert_array_equal(np.asarray(decode_image(content)), np.asarray(two_halves()))


def photograph() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, size=(64, 64, 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(photograph(), "JPEG")[:2000], "is damaged"),
        (encoded(photograph(), "PNG")[:5000], "is damaged"),
        (b"this is a text\n" * 20, "is no image"),
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "is (no image|damaged)"),
    ],
    ids=["truncated JPEG", "truncated PNG", "text", "nothing", "signature only"],
)
def test_what_is_no_picture_has_a_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=reason):
        decode_image(content)
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"a.png: {reason}"):
        read_image(path)


def test_pictures_that_would_fill_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline_lib.images.MAX_PIXELS", 100)
    with pytest.raises(DataError, match="has 16×8 pixels"):
        decode_image(encoded(two_halves()))


def test_a_file_that_changed_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(two_halves()))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_image(path, sha256).size == (16, 8)
    path.write_bytes(encoded(photograph()))
    with pytest.raises(DataError, match="has changed since"):
        read_image(path, sha256)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent.png cannot be read: No such file"):
        read_image(tmp_path / "absent.png")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Eleven grey pictures; the brightness is the number."""
    paths = [tmp_path / f"{number}.png" for number in range(11)]
    for number, path in enumerate(paths):
        Image.new("L", (3, 2), number).save(path)
    return paths


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()


@pytest.mark.parametrize("size", [1, 4, 11, 20])
def test_batches_come_whole_and_in_order(files: list[Path], size: int) -> None:
    batches = list(image_batches(files, as_tensor, size))
    assert [len(images) for _, images in batches[:-1]] == [size] * (len(batches) - 1)
    values = torch.cat([images for _, images in batches])
    assert values.shape == (11, 3, 2, 3)
    assert values[:, 0, 0, 0].tolist() == list(range(11))
    covered = [number for where, _ in batches for number in range(11)[where]]
    assert covered == list(range(11))


def test_the_next_batch_is_decoded_while_one_is_in_use(files: list[Path]) -> None:
    """The caller waits inside its first batch until a picture of the second was preprocessed."""
    second_batch_began = threading.Event()

    def preprocess(image: Image.Image) -> torch.Tensor:
        if image.getpixel((0, 0))[0] == 4:
            second_batch_began.set()
        return as_tensor(image)

    next(batches := image_batches(files, preprocess, 4))
    assert second_batch_began.wait(timeout=30)
    batches.close()


def test_a_bad_picture_ends_the_batches_with_its_name(files: list[Path]) -> None:
    files[5].write_text("no picture")
    batches = image_batches(files, as_tensor, 4)
    next(batches)
    with pytest.raises(DataError, match=r"5\.png: is no image"):
        next(batches)
