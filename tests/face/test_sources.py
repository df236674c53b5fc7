"""Pictures as clients send them: data: addresses, base64, open files, arrays, and paths."""

from __future__ import annotations

import base64
import io
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import load_image as theirs

from avl_runtime.vision.load import images, sources
from avl_runtime.vision.load.images import ImageError, load_image

COLOURS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
FORMS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")


def encoded(form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOURS).save(file, form)
    return file.getvalue()


def same(found: Image.Image, expected: Image.Image) -> None:
    assert found.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def refused(source: object) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and len(message) < 400
    return message


# Text that holds a picture.


@pytest.mark.parametrize("form", FORMS)
def test_base64_alone_and_as_an_address_is_read_as_transformers_reads_it(form: str) -> None:
    text = base64.b64encode(encoded(form)).decode()
    address = f"data:image/{form.lower()};base64,{text}"
    same(load_image(address), theirs(address))
    same(load_image(text), theirs(text))
    lines = base64.encodebytes(encoded(form)).decode()
    same(load_image(lines), theirs(lines))


DATA = encoded("PNG")
BASE = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "address",
    [
        f"DATA:image/png;BASE64,{BASE}",
        f"data:;base64,{BASE}",
        f"data:base64,{BASE}",
        f"base64,{BASE}",
        f" \n data:image/png;base64,{BASE}",
        f"image/png;base64,{BASE}",
        f"data:image/png;charset=utf-8;base64,{BASE}",
        f'data:image/png;name="a;b.png";base64,{BASE}',
        f"data:application/octet-stream;base64,{BASE.rstrip('=')}",
        f"data:image/png;base64,{quote(BASE, safe='')}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(DATA).decode()}",
        f"data:image/png;base64, {BASE[:50]}\r\n{BASE[50:]}\n",
        f"data:image/png,{quote(DATA)}",
        f"data:,{quote(DATA, safe='')}",
        f"data:image/png;charset=base64,{quote(DATA)}",
    ],
)
def test_addresses_in_every_spelling(address: str) -> None:
    same(load_image(address), Image.fromarray(COLOURS))


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("data:image/png;base64", "comma"),
        ("data:image/png;base64,", "base64"),
        ("data:image/png,", "no bytes"),
        (f"data:image/png;base64,{BASE[:401]}", "cut off"),
        (f"data:image/png;base64,{BASE[:400]}", "damaged"),
        (f"data:image/png;base64,{BASE[:50]}*{BASE[50:]}", "other characters"),
        (f"data:image/png,{BASE}", "found text"),
        (f"data:image/svg+xml,{quote('<svg xmlns=/>')}", "SVG"),
        (BASE[:401], "cut off"),
        (BASE[:400], "damaged"),
        (BASE + "é", "other characters"),
        ("hello " * 9000, "54000 characters"),
        ("/9j/4AAQ" + "x" * 3000, "other data"),
        ("iVBORw0KGgo/folder/cat.png", "nothing"),
    ],
)
def test_text_that_holds_no_picture(address: str, says: str) -> None:
    assert says in refused(address)


def test_a_file_is_taken_before_base64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = BASE[:48].replace("/", "_")
    Path(name).write_bytes(encoded("JPEG"))
    same(load_image(name), theirs(name))


@given(
    data=st.binary(max_size=60),
    broken=st.integers(0, 80),
    style=st.sampled_from(["base", "url", "percent"]),
)
@settings(max_examples=150, deadline=None)
def test_addresses_give_back_any_bytes(data: bytes, broken: int, style: str) -> None:
    if style == "percent":
        address = "data:," + quote(data, safe="")
    else:
        encode = base64.b64encode if style == "base" else base64.urlsafe_b64encode
        text = encode(data).decode()
        address = f"data:x/y;base64,{text[:broken]}\n{text[broken:]}"
    if data or style == "percent":
        assert sources.data_address(address, 60) == data
    if len(data) > 9:
        with pytest.raises(sources.SourceError, match="at most"):
            sources.data_address(address, len(data) - 1)


@pytest.mark.parametrize("head", ["data:image/png;base64,", "data:image/png,", ""])
def test_too_much_text_is_refused_before_it_is_copied(
    head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    text = head + BASE + "A" * 4_000_000
    tracemalloc.start()
    try:
        assert "at most 1000 B," in refused(text)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# Open files and bytes.


class Pipe(io.RawIOBase):
    """A file that cannot go back, as a network answer."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(size)


def test_open_files_are_read_from_their_beginning(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    written = io.BytesIO()
    Image.fromarray(COLOURS).save(written, "PNG")  # leaves it at its end
    for file in (written, io.BytesIO(path.read_bytes()), Pipe(path.read_bytes()), path.open("rb")):
        same(load_image(file), Image.fromarray(COLOURS))
    for form in (bytearray, memoryview):
        same(load_image(form(path.read_bytes())), Image.fromarray(COLOURS))


def test_open_files_that_hold_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(COLOURS).save(path)
    closed = path.open("rb")
    closed.close()
    assert "closed" in refused(closed)
    assert "binary mode" in refused(io.StringIO("text"))
    assert "expected an image file" in refused(path.open())
    assert "no bytes" in refused(io.BytesIO())
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    for source in (path, path.open("rb"), path.read_bytes(), Pipe(path.read_bytes())):
        assert "at most" in refused(source)


def test_a_pil_image_whose_file_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(DATA[:700])
    assert "cannot" in refused(Image.open(path))


# Arrays.


@pytest.mark.parametrize(
    "wider",
    [
        lambda grey: grey,
        lambda grey: grey[..., None],
        lambda grey: np.stack([grey] * 3, -1),
        lambda grey: np.stack([grey] * 3 + [np.full_like(grey, 255)], -1),
    ],
)
def test_arrays_of_one_three_and_four_channels(
    wider: Callable[[np.ndarray], np.ndarray],
) -> None:
    grey = COLOURS[..., 0]
    found = np.asarray(load_image(wider(grey)))
    np.testing.assert_array_equal(found, np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(np.asarray(load_image(wider(grey[::-1, ::2]))), found[::-1, ::2])


def test_a_fourth_channel_is_laid_over_white() -> None:
    array = np.zeros((2, 2, 4), np.uint8)
    array[0, 0, 3] = 255
    expected = np.full((2, 2, 3), 255, np.uint8)
    expected[0, 0] = 0
    np.testing.assert_array_equal(np.asarray(load_image(array)), expected)


# Paths.


def test_paths_from_home_and_as_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "my cat #1 100%.png"
    Image.fromarray(COLOURS).save(path)
    encoded_path = quote(str(path))
    for source in (
        f"~/{path.name}",
        Path("~") / path.name,
        f"file://{encoded_path}",
        f"file://localhost{encoded_path}",
        f"file:{encoded_path}",
        f"FILE://{encoded_path}",
    ):
        same(load_image(source), Image.fromarray(COLOURS))
    assert "another" in refused("file://another/cat.png")
    assert "nothing" in refused("file:///no/such/cat.png")
    assert "home" in refused("~nobody-of-that-name/cat.png")
    assert "expected a file's name, found an empty one" in refused("")


def test_a_name_that_begins_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(COLOURS).save("~cat.png")
    same(load_image("~cat.png"), Image.fromarray(COLOURS))
