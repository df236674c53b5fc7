"""Pixel values against transformers' PIL image processor."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from avl_runtime.vision import image_hash
from avl_runtime.vision.load.images import ImageError, load_image
from avl_runtime.vision.steps import ImageProcessing, fit, pixel_values
from face.support import image_processing

SIZES = [(168, 168), (640, 480), (333, 500), (60, 100), (1000, 31), (169, 170), (1, 1)]


def picture(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(size[0] * 7 + size[1])
    channels = {"RGB": 3, "RGBA": 4, "L": 1, "LA": 2}.get(mode, 3)
    pixels = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode == "P":
        return Image.fromarray(pixels).quantize(32)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels, mode)


def expected(image: Image.Image, steps: ImageProcessing) -> np.ndarray:
    resize = steps.resize
    size = {"shortest_edge": resize}
    if isinstance(resize, tuple):
        size = {"height": resize[0], "width": resize[1]}
    options: dict[str, object] = {
        "do_resize": resize is not None,
        "do_center_crop": steps.crop is not None,
        "do_rescale": steps.rescale is not None,
        "do_normalize": steps.mean is not None,
        "resample": steps.resample,
        "image_mean": list(steps.mean or ()),
        "image_std": list(steps.std or ()),
    }
    if resize is not None:
        options["size"] = size
    if steps.crop is not None:
        options["crop_size"] = {"height": steps.crop[0], "width": steps.crop[1]}
    processor = CLIPImageProcessorPil(**options)
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


def ours(image: Image.Image, steps: ImageProcessing) -> np.ndarray:
    return pixel_values(fit(load_image(image), steps), steps)


def check(image: Image.Image, steps: ImageProcessing) -> None:
    found, wanted = ours(image, steps), expected(image, steps)
    assert found.dtype == np.float32 and found.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size: tuple[int, int]) -> None:
    check(picture(size), image_processing())


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P"])
def test_modes(mode: str) -> None:
    check(picture((200, 150), mode), image_processing())


@pytest.mark.parametrize("crop", [(168, 168), (101, 300), (300, 101), (400, 400), (7, 8), None])
@pytest.mark.parametrize("resize", [168, (90, 131), None])
def test_steps(crop: tuple[int, int] | None, resize: int | tuple[int, int] | None) -> None:
    check(picture((211, 160)), image_processing(crop=crop, resize=resize))
    check(picture((160, 211)), image_processing(crop=crop, resize=resize, resample=2))


def test_without_rescaling_or_normalizing() -> None:
    check(picture((200, 150)), image_processing(rescale=None))
    check(picture((200, 150)), image_processing(mean=None, std=None))


def test_a_picture_too_narrow_to_resize_is_refused() -> None:
    with pytest.raises(ImageError, match="megapixels"):
        ours(Image.new("RGB", (1, 60_000)), image_processing())


def test_hash_tells_pictures_and_shapes_apart() -> None:
    image = picture((40, 30))
    assert image_hash(image) == image_hash(image.copy())
    assert image_hash(image) != image_hash(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert image_hash(Image.new("RGB", (4, 9))) != image_hash(Image.new("RGB", (9, 4)))
