"""Frames of animations and pages of documents, and HEIC pictures."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avl_runtime.vision.load import images
from avl_runtime.vision.load.images import Frame, ImageError, load_image

SHADES = (20, 90, 160, 230)
FORMS = {
    "GIF": ("a.gif", {}),
    "WEBP": ("a.webp", {"lossless": True}),
    "PNG": ("a.png", {}),
    "AVIF": ("a.avif", {"quality": 100}),
    "TIFF": ("a.tiff", {}),
}


def moving(form: str, size: tuple[int, int] = (16, 12)) -> bytes:
    """An animation, or a document, whose frames get lighter."""
    frames = [Image.new("RGB", size, (shade, 0, 0)) for shade in SHADES]
    file = io.BytesIO()
    options = FORMS[form][1]
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=80, **options)
    return file.getvalue()


def shade(image: Image.Image) -> int:
    return int(np.asarray(image)[..., 0].mean().round())


def refused(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    return message


@pytest.mark.parametrize("form", FORMS)
def test_any_frame_can_be_chosen_and_the_first_is_taken_else(form: str, tmp_path: Path) -> None:
    path = tmp_path / FORMS[form][0]
    data = moving(form)
    path.write_bytes(data)
    for source in (path, str(path), data, io.BytesIO(data)):
        for index in (2, 0, 3, 1):
            assert abs(shade(load_image(Frame(source, index))) - SHADES[index]) <= 2
        assert abs(shade(load_image(source)) - SHADES[0]) <= 2
        assert abs(shade(load_image(Frame(source, None))) - SHADES[0]) <= 2
        assert abs(shade(load_image(Frame(source, np.int64(1)))) - SHADES[1]) <= 2  # type: ignore[arg-type]
        assert "frames 0 to 3" in refused(Frame(source, 4))
    assert abs(shade(load_image(f"{path}#frame=2")) - SHADES[2]) <= 2
    assert abs(shade(load_image(f"file://{path}#frame=3")) - SHADES[3]) <= 2
    assert "frames 0 to 3" in refused(f"{path}#frame=99")


def test_what_a_file_is_called_comes_before_the_choice(tmp_path: Path) -> None:
    (tmp_path / "a.gif").write_bytes(moving("GIF"))
    Image.new("RGB", (4, 4), (1, 1, 1)).save(tmp_path / "a.gif#frame=2", "PNG")
    assert shade(load_image(str(tmp_path / "a.gif#frame=2"))) == 1
    assert shade(load_image(str(tmp_path / "a.gif#frame=1"))) == SHADES[1]
    assert shade(load_image(Frame(tmp_path / "a.gif#frame=2", 0))) == 1
    assert "nothing" in refused(str(tmp_path / "b.gif#frame=1"))
    assert "nothing" in refused(str(tmp_path / "a.gif#frame=x"))


def test_frames_that_are_none() -> None:
    still = io.BytesIO()
    Image.new("RGB", (4, 4)).save(still, "PNG")
    assert "one frame" in refused(Frame(still, 1))
    for index in (-1, 1.5, "2", True):
        assert "number of a frame" in refused(Frame(still, index))  # type: ignore[arg-type]
    array = np.zeros((4, 4, 3), np.uint8)
    assert "ndarray" in refused(Frame(array, 0))  # type: ignore[arg-type]


def test_frames_far_behind_are_refused_before_they_are_sought(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "MAX_SOUGHT", 3 * 16 * 12)
    assert load_image(Frame(moving("GIF"), 2)).size == (16, 12)
    assert "megapixels" in refused(Frame(moving("GIF"), 3))
    assert load_image(Frame(moving("TIFF"), 3)).size == (16, 12)


def test_heic_pictures(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif (the extra heic) is missing")
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "telephone.HEIC"
    options = {"quality": -1, "chroma": 444, "matrix_coefficients": 0}
    file = heif.from_pillow(Image.fromarray(colours))
    file.add_from_pillow(Image.new("RGB", (32, 32), (200, 0, 0)))
    file.save(path, exif=exif.tobytes(), **options)
    for source in (path, path.read_bytes()):
        upright = np.asarray(load_image(source))
        expected = np.rot90(colours, -1)
        assert upright.shape == expected.shape
        assert np.abs(upright.astype(int) - expected).max() <= 2
    assert abs(shade(load_image(f"{path}#frame=1")) - 200) <= 2
    whole = path.read_bytes()
    refused(whole[: len(whole) // 2])
    refused(whole[:64])


def test_large_heic_pictures_are_refused_from_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif (the extra heic) is missing")
    file = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 64))).save(file)
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    assert "megapixels" in refused(file)


def test_without_the_reader_of_heic_the_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)
    message = refused(data)
    assert "pillow-heif" in message and "install" in message
    mif1 = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(200)
    assert "pillow-heif" in refused(mif1)
