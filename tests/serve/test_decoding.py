"""Pictures of strangers are decoded in processes that are ended when they hang."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from avl_runtime.serve.app import App
from avl_runtime.serve.asked.content import Picture
from avl_runtime.serve.decoding import processes
from avl_runtime.serve.decoding.checked import TooManyPixelsError
from avl_runtime.serve.decoding.processes import Decoders, DiedError, StartError, TooSlowError
from avl_runtime.serve.decoding.wire import MOST_TEXT, READY
from avl_runtime.serve.errors import ApiError
from avl_runtime.serve.http.guard import Guard
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.pictures import Pictures
from avl_runtime.serve.shelf import Shelf
from avl_runtime.vision.load.images import ImageError, load_image
from support.server import CHAT, MODEL, TWO, data_url, question

LONG = 300.0  # seconds that no picture takes
PIXELS = 1 << 20
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc, and limits of memory")


def coloured(width: int, height: int, mode: str = "RGB") -> Image.Image:
    drawn = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(drawn).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


SMALL = encoded(coloured(5, 3))


@contextmanager
def begun(*command: str) -> Iterator[Decoders]:
    found = Decoders(1, PIXELS, 1 << 20, command or None)
    try:
        yield found
    finally:
        found.close()
    assert found.ids == []


def gone(process: int) -> None:
    """Wait until there is no such process; one that nobody has asked how it ended is none."""
    for _ in range(2400):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return
        if state == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {process} runs")


def test_pixels_are_those_of_the_loader(decoders: Decoders) -> None:
    """Of each format and kind, also where what is sent at a time does not divide them."""
    turned = Image.Exif()
    turned[0x112] = 6
    for data in (
        SMALL,
        encoded(coloured(701, 901)),
        encoded(coloured(1, 9000)),
        encoded(coloured(400_000, 2)),
        encoded(coloured(40, 30), "JPEG", exif=turned),
        encoded(coloured(40, 30), "WEBP", lossless=True),
        encoded(coloured(40, 30, "P"), "GIF"),
        encoded(coloured(40, 30, "RGBA").rotate(45, expand=True), exif=turned),
        encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 99)),
    ):
        found = decoders.decode(data, PIXELS, LONG)
        assert found.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(found), np.asarray(load_image(data)))


def test_a_process_outlives_pictures_that_are_none() -> None:
    with begun() as decoders:
        assert decoders.ids == []
        decoders.decode(SMALL, PIXELS, LONG)
        (first,) = decoders.ids
        for data in (b"", b"text", SMALL[:-30], encoded(coloured(4, 4), "BMP"), bytes(1 << 20)):
            with pytest.raises(ImageError, match=r"^(image bytes: )?expected"):
                decoders.decode(data, PIXELS, LONG)
        with pytest.raises(TooManyPixelsError):
            decoders.decode(SMALL, 14, LONG)
        assert decoders.decode(SMALL, 15, LONG).size == (5, 3)
        assert decoders.ids == [first]
    assert not [one for one in threading.enumerate() if isinstance(one, threading.Timer)]


@posix
def test_one_that_hangs_is_ended_and_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    with begun() as decoders:
        decoders.decode(SMALL, PIXELS, LONG)
        (first,) = decoders.ids
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(TooSlowError):
            decoders.decode(SMALL, PIXELS, 0.01)
        assert decoders.ids == []
        gone(first)
        assert decoders.decode(SMALL, PIXELS, LONG).size == (5, 3)
        (told,) = capfd.readouterr().err.splitlines()
        assert told.endswith("was ended: it took more than 0.01 s")
        (second,) = decoders.ids
        os.kill(second, signal.SIGKILL)  # while nobody asks, so that nobody need know
        gone(second)
        assert decoders.decode(SMALL, PIXELS, LONG).size == (5, 3)
        assert capfd.readouterr().err == ""


def running(code: str) -> tuple[str, ...]:
    """A process that says it is ready."""
    return (sys.executable, "-S", "-c", f"import os, sys; os.write(1, {READY!r}); {code}")


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\x00\x04\x00\x00\x01\x04\x00\x00",  # 1024 x 1025
        b"\x00\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00" * 9,
        b"\x01" + (MOST_TEXT + 1).to_bytes(4, "little") + bytes(4),
        b"\x03" * 9,
    ],
)
def test_answers_that_are_none(answer: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Nothing is made of them, and no memory taken for them."""
    with begun(*running(f"os.write(1, {answer!r}); sys.stdin.read()")) as decoders:
        with pytest.raises(DiedError, match="its answer was none"):
            decoders.decode(SMALL, PIXELS, LONG)
        assert decoders.ids == []
    assert "its answer was none" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("os.read(0, 1); os.kill(os.getpid(), 9)", "Killed"),
        ("os.read(0, 1); os._exit(3)", "exit status 3"),
        (f"os.write(1, {bytes([0, 2, 0, 0, 0, 2, 0, 0, 0, 7])!r})", "exit status 0"),
    ],
)
def test_processes_that_end_meanwhile(
    code: str, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """With nothing said, and in the middle of the pixels."""
    with begun(*running(code)) as decoders:
        with pytest.raises(ApiError, match="found one that ends its decoder") as refused:
            Pictures(Limits(), decoders).load(Picture(data_url(coloured(4, 4)), "x"))
        assert (refused.value.status, decoders.ids) == (400, [])
    assert told in capfd.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ("/nowhere/python",),
        (sys.executable, "-S", "-c", "pass"),
        (sys.executable, "-S", "-c", "print('something else')"),
    ],
)
def test_no_process_to_be_had(command: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> None:
    with begun(*command) as decoders:
        with pytest.raises(ApiError) as refused:
            Pictures(Limits(), decoders).load(Picture(data_url(coloured(4, 4)), "x"))
        assert (refused.value.status, refused.value.code) == (503, "no_decoder")
        assert command[0] not in str(refused.value)
    assert "no process that decodes pictures can be begun" in capfd.readouterr().err
    with pytest.raises(StartError):  # closed
        decoders.decode(SMALL, PIXELS, LONG)


@linux
def test_what_a_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of the server's, no file of it, no runtime of models; so much memory and no more."""
    monkeypatch.setenv("AVL_API_KEY", "a-secret-0123456789")
    monkeypatch.setattr(processes, "PIXEL_BYTES", 1)
    listener = os.memfd_create("of-the-server")
    os.set_inheritable(listener, True)
    try:
        with begun() as decoders:
            decoders.decode(SMALL, PIXELS, LONG)
            (process,) = decoders.ids
            place = Path(f"/proc/{process}")
            assert b"a-secret" not in (place / "environ").read_bytes()
            assert not [
                one for one in (place / "fd").iterdir() if "of-the-server" in one.readlink().name
            ]
            mapped = (place / "maps").read_text()
            assert "numpy" in mapped
            assert not [one for one in ("onnxruntime", "torch", "tokenizers") if one in mapped]
            large = encoded(Image.new("RGBA", (4000, 4000)))
            with pytest.raises(ImageError, match="expected memory for 4000 x 4000 pixels"):
                decoders.decode(large, 1 << 30, LONG)
            assert decoders.ids == [process]
    finally:
        os.close(listener)


@posix
def test_the_processor_s_time_is_limited_too() -> None:
    """Which ends a process that hangs where its server is gone."""
    code = "from avl_runtime.serve.decoding.worker import allow\nallow(0)\nwhile True: pass"
    found = subprocess.run([sys.executable, "-c", code], check=False, timeout=600)
    assert found.returncode == -signal.SIGXCPU


@linux
def test_processes_end_with_the_one_that_began_them() -> None:
    """However it ends: nobody closes anything where it is killed."""
    code = f"""
import os, sys
from avl_runtime.serve.decoding.processes import Decoders
decoders = Decoders(1, 1000, 1000)
decoders.decode({SMALL!r}, 1000, 300)
os.kill(decoders.ids[0], 15)  # which the manager of a service sends to all processes
print(*decoders.ids, decoders.decode({SMALL!r}, 1000, 300).size, flush=True)
os.kill(os.getpid(), 9)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, stdout=subprocess.PIPE, text=True
    )
    assert found.returncode == -signal.SIGKILL
    process, size = found.stdout.split(maxsplit=1)
    assert size == "(5, 3)\n"
    gone(int(process))


@posix
def test_a_client_is_told_and_the_next_one_is_answered(tiny_package: Path) -> None:
    """A picture that takes too long is refused; its request leaves nothing behind."""
    shelf = Shelf({MODEL: tiny_package}, Limits(), backend="ort-cpu")
    app = App(shelf, Limits(decoding=0.01), Guard((), None), None)
    decoders = app.answering.decoders

    async def asked() -> tuple[int, Any]:
        waiting = [{"type": "http.request", "body": json.dumps(body).encode()}]
        sent: list[Any] = []

        async def receive() -> Any:
            if not waiting:
                await asyncio.Event().wait()
            return waiting.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        await app(
            {"type": "http", "method": "POST", "path": CHAT, "headers": headers}, receive, send
        )
        return sent[0]["status"], json.loads(sent[1]["body"])

    body = {"model": MODEL, "messages": question(TWO), "max_tokens": 1}

    async def both() -> None:
        decoders.decode(SMALL, PIXELS, LONG)
        os.kill(decoders.ids[0], signal.SIGSTOP)
        status, told = await asked()
        assert (status, told["error"]["param"]) == (400, "messages[0].content[0].image_url.url")
        assert "expected pictures that are decoded in 0.01 s together" in told["error"]["message"]
        assert app.answering.admission.running == 0
        object.__setattr__(app.answering._limits, "decoding", LONG)
        status, told = await asked()
        assert status == 200
        left = decoders.ids
        await app.close()
        for one in left:
            gone(one)

    asyncio.run(both())
