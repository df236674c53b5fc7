"""Pictures from every source, and the ones that must be refused."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avl_runtime.vision.load import images
from avl_runtime.vision.load.images import ImageError, load_image

COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its few bytes do not hold."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99))


def refused(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and "expected" in message
    return message


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    image = Image.fromarray(COLOURS)
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), path.read_bytes(), image, COLOURS, COLOURS[::-1][::-1]):
        loaded = load_image(source)
        assert loaded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(loaded), COLOURS)


def test_transparency_is_laid_over_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert load_image(clear).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(encoded(half)).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 7)
    palette.info["transparency"] = 7
    assert load_image(palette).getpixel((0, 0)) == (255, 255, 255)


def test_orientation_applies_to_files_and_not_to_pil_images() -> None:
    image = Image.fromarray(COLOURS)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    data = encoded(image, exif=exif)
    assert load_image(data).size == (20, 30)
    assert load_image(Image.open(io.BytesIO(data))).size == (30, 20)


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("size", [(9_000, 9_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_from_the_header(size: tuple[int, int]) -> None:
    assert "megapixels" in refused(bomb(*size))


def test_size_limit_holds_for_images_in_memory() -> None:
    assert "megapixels" in refused(np.zeros((1, 1, 3), np.uint8).repeat(70_000_000, 1))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files(form: str) -> None:
    data = encoded(Image.fromarray(COLOURS.repeat(8, 0).repeat(8, 1)), form)
    for length in (10, len(data) // 3, len(data) * 2 // 3):
        refused(data[:length])


def test_damaged_files_never_raise_anything_else() -> None:
    rng = np.random.default_rng(1)
    for form in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        whole = np.frombuffer(encoded(Image.fromarray(COLOURS), form), np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            try:
                load_image(data.tobytes())
            except ImageError as error:
                assert "\n" not in str(error)


def test_damaged_files_write_no_stray_lines() -> None:
    """Pillow logs a TIFF of very many samples as an error, which Python writes to stderr."""
    data = bytearray(encoded(Image.fromarray(COLOURS), "TIFF"))
    at = data.index(struct.pack("<HHI", 277, 3, 1))  # samples a pixel, one short
    data[at + 8 : at + 10] = struct.pack("<H", 41475)
    code = """
import io, sys
from PIL import Image
from avl_runtime.vision.load.images import ImageError, load_image
try:
    load_image(sys.stdin.buffer.read())
except ImageError:
    print("refused")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=bytes(data), capture_output=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == (b"refused", b"")


def test_what_is_no_picture(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("hello, I am a text file with the wrong name\n" * 40)
    assert "found text" in refused(text)
    assert "other data" in refused(b"\x00\xff\xfe" * 100)
    empty = tmp_path / "empty.png"
    empty.touch()
    assert "no bytes" in refused(empty)
    assert "folder" in refused(tmp_path)
    assert "nothing" in refused(tmp_path / "missing.png")
    assert "device" in refused("/dev/zero")
    refused("nul\0byte.png")
    refused("x" * 5000)
    assert "http" in refused("ftp://example.org/cat.png")
    assert "found text" in refused(f"file://{text}")
    assert "found int" in refused(3)


def test_no_postscript() -> None:
    assert "expected an image" in refused(encoded(Image.fromarray(COLOURS), "EPS"))


@pytest.mark.parametrize(
    "array",
    [
        COLOURS.astype(np.float32),
        COLOURS.astype(np.uint16),
        COLOURS[0, 0],
        COLOURS[..., :2],
        COLOURS[None],
        COLOURS.transpose(2, 0, 1),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_arrays_of_another_kind(array: np.ndarray) -> None:
    refused(array)


class Site(BaseHTTPRequestHandler):
    """Serves a picture, an endless answer, a missing page and a redirect to a file."""

    def do_GET(self) -> None:
        if self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
        elif self.path in ("/cat.png", "/endless"):
            self.send_response(200)
            self.end_headers()
            data = encoded(Image.fromarray(COLOURS))
            try:
                for _ in range(1 if self.path == "/cat.png" else 10_000):
                    self.wfile.write(data)
            except OSError:
                return
        else:
            self.send_error(404)

    def log_message(self, *arguments: object) -> None:
        """Stay quiet."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_addresses(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    np.testing.assert_array_equal(np.asarray(load_image(f"{site}/cat.png")), COLOURS)
    assert "404" in refused(f"{site}/missing.png")
    refused(f"{site}/away")
    monkeypatch.setattr(images, "MAX_BYTES", 100_000)
    assert "at most" in refused(f"{site}/endless")
    refused("http://127.0.0.1:1/cat.png")
    refused("http://[broken/cat.png")
