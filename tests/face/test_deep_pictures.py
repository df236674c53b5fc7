"""Pictures of 16 and 32 bits a sample, and of floating-point samples."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from avl_runtime.vision.load import deep
from avl_runtime.vision.load.images import load_image

RAMP = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)  # 16 bits of 0 to 255
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
FIELDS = {"u": 1, "i": 2, "f": 3}


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deep, "_told", set())


def png(samples: NDArray[np.uint16], kind: int, *, clear: int | None = None) -> bytes:
    """A PNG of 16 bits: kind 0 is grey, 4 with alpha, 2 colours, 6 with alpha."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
        + (b"" if clear is None else chunk(b"tRNS", struct.pack(">H", clear)))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def tiff(samples: NDArray[np.generic], order: str, photometric: int = 1, turn: int = 1) -> bytes:
    """An uncompressed TIFF in either byte order."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    bits, form = samples.dtype.itemsize * 8, FIELDS[samples.dtype.kind]
    fields = [
        (256, [width]),
        (257, [height]),
        (258, [bits] * channels),
        (259, [1]),
        (262, [photometric]),
        (273, [8]),
        (274, [turn]),
        (277, [channels]),
        (278, [height]),
        (279, [len(data)]),
        (339, [form] * channels),
    ]
    entries, behind = b"", b""
    at = 8 + len(data) + 2 + 12 * len(fields) + 4
    for tag, numbers in fields:
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        place = packed if len(packed) == 4 else struct.pack(f"{order}I", at + len(behind))
        behind += b"" if len(packed) == 4 else packed
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + place
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    count = struct.pack(f"{order}H", len(fields))
    return head + data + count + entries + bytes(4) + behind


def grey_of(source: object) -> NDArray[np.uint8]:
    """The one channel of a picture without colours."""
    found = np.asarray(load_image(source))  # type: ignore[arg-type]
    for channel in (1, 2):
        np.testing.assert_array_equal(found[..., channel], found[..., 0])
    return found[..., 0]


def saved(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


@pytest.mark.parametrize(
    "source",
    [
        png(RAMP, 0),
        tiff(RAMP, "<"),
        tiff(RAMP, ">"),
        tiff(RAMP.astype(np.int32), "<"),
        tiff(RAMP.astype(np.int32), ">"),
        tiff(RAMP.astype(np.uint32), "<"),
        tiff(RAMP.astype(np.float32), "<"),
        tiff((RAMP / 65535).astype(np.float32), "<"),
        tiff((RAMP / 65535).astype(np.float32), ">"),
        tiff(GREY.astype(np.float32), ">"),
        tiff(GREY.astype(np.float32) * 3.5 - 100, "<"),
        tiff(GREY.astype(np.int32) * 1_000_000 - 9, ">"),
        tiff(GREY.astype(np.uint32) << 24, "<"),
        saved(Image.fromarray(RAMP), "JPEG2000"),
        b"P5 16 16 65535\n" + RAMP.astype(">u2").tobytes(),
        b"P5 16 16 1023\n" + (GREY.astype(">u2") * 4 + 3).astype(">u2").tobytes(),
        b"Pf 16 16 -1.0\n" + (RAMP[::-1] / 65535).astype("<f4").tobytes(),
        Image.fromarray(RAMP),
        Image.fromarray(RAMP.astype(np.int32)),
        Image.fromarray((RAMP / 65535).astype(np.float32)),
        Image.fromarray(RAMP.astype(np.int32)).convert("I;16B"),
        Image.fromarray(RAMP.astype(np.int32)).convert("I;16L"),
    ],
)
def test_black_to_white_comes_out_as_black_to_white(
    source: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """Within one step, as the ramp of 10 bits has no exact middle values."""
    found = grey_of(source)
    assert np.abs(found.astype(int) - GREY).max() <= 1
    load_image(source)  # type: ignore[arg-type]
    told = capsys.readouterr().err
    assert told == "" or (told.count("\n") == 1 and "scaled to 8 bits" in told)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bits_of_every_channel_are_as_near_as_pillow_has_them(order: str) -> None:
    """Pillow brings colours to 8 bits itself, by leaving the lower byte out."""
    rng = np.random.default_rng(0)
    deep_colours = rng.integers(0, 65536, (9, 7, 3), dtype=np.uint16)
    for data in (png(deep_colours, 2), tiff(deep_colours, order, 2)):
        np.testing.assert_array_equal(np.asarray(load_image(data)), deep_colours >> 8)
    opaque = np.concatenate([deep_colours, np.full((9, 7, 1), 65535, np.uint16)], -1)
    np.testing.assert_array_equal(np.asarray(load_image(png(opaque, 6))), deep_colours >> 8)
    shaded = np.stack([RAMP, np.full_like(RAMP, 65535)], -1)
    np.testing.assert_array_equal(grey_of(png(shaded, 4)), RAMP >> 8)


def test_a_dark_file_of_16_bits_stays_dark() -> None:
    """Its format says what white is; a picture in memory holds 8 bits if no value is larger."""
    dark = GREY.astype(np.uint16)
    for data in (png(dark, 0), tiff(dark, "<"), tiff(dark, ">")):
        assert grey_of(data).max() == 1
    np.testing.assert_array_equal(grey_of(Image.fromarray(dark)), GREY)


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "I;16L", "I;16B"])
def test_8_bits_in_a_wider_mode_stay_as_they_are(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    image = Image.fromarray(GREY).convert(mode)
    np.testing.assert_array_equal(grey_of(image), np.asarray(image.convert("RGB"))[..., 0])
    np.testing.assert_array_equal(grey_of(image), GREY)
    mixed = Image.merge("RGB", [Image.fromarray(np.roll(GREY, n, 0)) for n in (0, 5, 9)])
    wide = mixed.convert(mode)  # of mode F, with fractions
    np.testing.assert_array_equal(grey_of(wide), np.asarray(wide.convert("RGB"))[..., 0])
    assert capsys.readouterr().err == ""


def test_pictures_whose_lowest_number_is_white() -> None:
    np.testing.assert_array_equal(grey_of(tiff(RAMP, "<", photometric=0)), 255 - GREY)


def test_one_value_stands_for_transparency() -> None:
    found = grey_of(png(RAMP, 0, clear=int(RAMP[3, 4])))
    expected = GREY.copy()
    expected[3, 4] = 255
    np.testing.assert_array_equal(found, expected)


def test_values_that_are_no_numbers_are_black() -> None:
    values = (GREY / 255).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    expected = GREY.copy()
    expected[0, :3] = 0
    np.testing.assert_array_equal(grey_of(Image.fromarray(values)), expected)
    assert grey_of(Image.fromarray(np.full((2, 2), np.nan, np.float32))).max() == 0
    assert grey_of(Image.fromarray(np.full((2, 2), 999.5, np.float32))).max() == 0


@pytest.mark.parametrize("turn", range(1, 9))
def test_deep_pictures_are_turned_upright(turn: int) -> None:
    eight, sixteen = load_image(tiff(GREY, "<", turn=turn)), load_image(tiff(RAMP, "<", turn=turn))
    np.testing.assert_array_equal(np.asarray(sixteen), np.asarray(eight))


def test_how_values_were_scaled_is_said_once_a_process(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        load_image(png(RAMP, 0))
        load_image(Image.fromarray((RAMP / 65535).astype(np.float32)))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "16 bits a sample, 0 to 65535" in lines[0] and "floating-point" in lines[1]
